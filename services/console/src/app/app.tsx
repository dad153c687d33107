import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { useEffect, useMemo, useSyncExternalStore } from "react";
import { RouterProvider } from "react-router";
import { Api } from "../api/client.ts";
import { asProblem } from "../api/problem.ts";
import type { User } from "../auth/oidc.ts";
import type { Session } from "../auth/session.ts";
import { SessionEndedDialog, SignInFailed, Starting } from "../auth/sign-in.tsx";
import { LiveRegion } from "../live/region.ts";
import { ConsoleContext } from "./context.ts";
import { createRouter } from "./routes.tsx";
import { Toasts } from "./toasts.tsx";

/** The console: nothing before sign-in, then the pages over one live view of the region. */
export function App({ session }: { session: Session }) {
	const state = useSyncExternalStore(session.subscribe, session.snapshot);
	switch (state.phase) {
		case "starting":
			return <Starting />;
		case "failed":
			return <SignInFailed problem={state.problem} onRetry={() => void session.signIn()} />;
		case "ended":
		case "signed-in":
			return (
				<>
					<SignedIn session={session} user={state.user} />
					{state.phase === "ended" && <SessionEndedDialog onSignIn={() => void session.signIn()} />}
				</>
			);
	}
}

function SignedIn({ session, user }: { session: Session; user: User }) {
	const { api, live, queries, router } = useMemo(() => {
		const api = new Api(session);
		const queries = new QueryClient({
			defaultOptions: {
				queries: {
					staleTime: 60_000,
					retry: (count, error) => count < 3 && asProblem(error).isTransient,
				},
			},
		});
		return { api, live: new LiveRegion((url, init) => api.fetch(url, init)), queries, router: createRouter() };
	}, [session]);
	useEffect(() => {
		const stop = new AbortController();
		void live.follow(stop.signal);
		return () => stop.abort();
	}, [live]);
	const value = useMemo(() => ({ api, live, session, user }), [api, live, session, user]);
	return (
		<QueryClientProvider client={queries}>
			<ConsoleContext value={value}>
				<Toasts>
					<RouterProvider router={router} />
				</Toasts>
			</ConsoleContext>
		</QueryClientProvider>
	);
}
