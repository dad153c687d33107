import { Card, CardBody, CardHeader, CardTitle } from "@patternfly/react-core";
import type { ReactNode } from "react";

/** A titled part of a page. */
export function Panel({
	title,
	actions,
	isFlush = false,
	children,
	className,
}: {
	title: ReactNode;
	actions?: ReactNode;
	/** For tables, which bring their own padding. */
	isFlush?: boolean;
	children: ReactNode;
	className?: string;
}) {
	return (
		<Card isCompact component="section" className={["gp-panel", className].filter(Boolean).join(" ")}>
			<CardHeader {...(actions !== undefined && { actions: { actions, hasNoOffset: true } })}>
				<CardTitle component="h2">{title}</CardTitle>
			</CardHeader>
			<CardBody className={isFlush ? "gp-flush" : ""}>{children}</CardBody>
		</Card>
	);
}
