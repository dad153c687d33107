import express, { Router } from "express";
import { errors, type Provider } from "oidc-provider";
import { z } from "zod";
import { GroundplaneError } from "../../protocol/errors.ts";
import { confirmPage, messagePage, pageHeaders, signInPage } from "./pages.ts";
import type { SignIn } from "./sign-in.ts";

const form = z.object({ username: z.string().max(128), password: z.string().max(1024) });

/** The sign-in page: shown when the provider needs to know who is there, and where its form is sent. */
export function interactionRouter({
	provider,
	signIn,
	region,
}: {
	provider: Provider;
	signIn: SignIn;
	region: string;
}): Router {
	const router = Router();

	/** The provider's question, with what the page needs to show it. */
	const question = async (request: express.Request, response: express.Response) => {
		const details = await provider.interactionDetails(request, response);
		const client = await provider.Client.find(String(details.params.client_id));
		const redirect = URL.parse(String(details.params.redirect_uri ?? ""));
		return {
			details,
			client: client?.clientName ?? "an application",
			// Chromium applies form-action to the redirects that follow, too (the loopback of `gp`).
			headers: pageHeaders(redirect ? redirect.origin : ""),
		};
	};

	router.get("/auth/interaction/:uid", async (request, response) => {
		const { details, client, headers } = await question(request, response);
		const options = { region, client, action: request.originalUrl };
		response.set(headers).send(details.prompt.name === "login" ? signInPage(options) : confirmPage(options));
	});

	router.post(
		"/auth/interaction/:uid",
		express.urlencoded({ extended: false, limit: "8kb" }),
		async (request, response) => {
			const { details, client, headers } = await question(request, response);
			if (details.prompt.name !== "login") {
				await provider.interactionFinished(request, response, { consent: {} });
				return;
			}
			const { username, password } = form.safeParse(request.body).data ?? { username: "", password: "" };
			let error = "The user name or the password is wrong.";
			let status = 401;
			const user = await signIn
				.attempt(username, password, { ip: request.ip ?? "unknown", client: String(details.params.client_id) })
				.catch((cause: unknown) => {
					if (!(cause instanceof GroundplaneError) || cause.code !== "Overloaded") throw cause;
					error = `${cause.message} ${cause.next}`;
					status = 429;
					return undefined;
				});
			if (user) {
				const login = { accountId: user.id, amr: ["pwd"] };
				await provider.interactionFinished(request, response, { login, consent: {} });
				return;
			}
			response
				.status(status)
				.set(headers)
				.send(signInPage({ region, client, action: request.originalUrl, name: username, error }));
		},
	);

	router.use(
		"/auth/interaction",
		(error: unknown, _request: express.Request, response: express.Response, next: express.NextFunction) => {
			if (!(error instanceof errors.SessionNotFound)) return next(error);
			response
				.status(400)
				.set(pageHeaders())
				.send(messagePage("This page is out of date", "Go back to where you came from and sign in again."));
		},
	);
	return router;
}
