import { Alert } from "@patternfly/react-core";
import type { ReactNode } from "react";
import { asProblem } from "../api/problem.ts";

/** An error as everywhere: what happened, what to do, and the code to quote. */
export function ProblemAlert({
	error,
	title,
	actionLinks,
}: {
	error: unknown;
	title: string;
	actionLinks?: ReactNode;
}) {
	return (
		<Alert variant="danger" isInline isLiveRegion title={title} actionLinks={actionLinks}>
			<ProblemText error={error} />
		</Alert>
	);
}

export function ProblemText({ error }: { error: unknown }) {
	const { message, next, code, requestId } = asProblem(error);
	return (
		<>
			<p>{message}</p>
			<p>{next}</p>
			<p className="gp-subtle">
				{code}
				{requestId && <> · request {requestId}</>}
			</p>
		</>
	);
}
