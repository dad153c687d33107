import { Card, CardBody, CardHeader, CardTitle } from "@patternfly/react-core";
import type { ReactNode } from "react";

/** A titled part of a page. */
export function Panel({ title, actions, children }: { title: ReactNode; actions?: ReactNode; children: ReactNode }) {
	return (
		<Card isCompact component="section" className="gp-panel">
			<CardHeader {...(actions !== undefined && { actions: { actions, hasNoOffset: true } })}>
				<CardTitle component="h2">{title}</CardTitle>
			</CardHeader>
			<CardBody>{children}</CardBody>
		</Card>
	);
}
