import {
	Bullseye,
	Button,
	EmptyState,
	EmptyStateActions,
	EmptyStateBody,
	EmptyStateFooter,
	Modal,
	ModalBody,
	ModalFooter,
	ModalHeader,
	Spinner,
} from "@patternfly/react-core";
import { useEffect, useState } from "react";
import type { Problem } from "../api/problem.ts";

/** Shown for the moment that the way to the issuer and back takes; a spinner only if it takes longer. */
export function Starting() {
	const [isSlow, setIsSlow] = useState(false);
	useEffect(() => {
		const timer = setTimeout(() => setIsSlow(true), 800);
		return () => clearTimeout(timer);
	}, []);
	return <Bullseye className="gp-full">{isSlow && <Spinner aria-label="Signing in" />}</Bullseye>;
}

export function SignInFailed({ problem, onRetry }: { problem: Problem; onRetry: () => void }) {
	return (
		<Bullseye className="gp-full">
			<main>
				<EmptyState headingLevel="h1" status="danger" titleText="You are not signed in">
					<EmptyStateBody>
						<p role="alert">{problem.message}</p>
						<p>{problem.next}</p>
						<p className="gp-subtle">{problem.code}</p>
					</EmptyStateBody>
					<EmptyStateFooter>
						<EmptyStateActions>
							<Button onClick={onRetry}>Sign in</Button>
						</EmptyStateActions>
					</EmptyStateFooter>
				</EmptyState>
			</main>
		</Bullseye>
	);
}

/** What was on the page stays there to be read. */
export function SessionEndedDialog({ onSignIn }: { onSignIn: () => void }) {
	return (
		<Modal variant="small" isOpen aria-labelledby="session-ended-title" aria-describedby="session-ended-body">
			<ModalHeader title="Your session has ended" labelId="session-ended-title" />
			<ModalBody id="session-ended-body">
				What you see is no longer kept up to date. After signing in again you come back to this page.
			</ModalBody>
			<ModalFooter>
				<Button onClick={onSignIn} autoFocus>
					Sign in again
				</Button>
			</ModalFooter>
		</Modal>
	);
}
