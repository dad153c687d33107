import { Banner, Button, Icon } from "@patternfly/react-core";
import CircleIcon from "@patternfly/react-icons/dist/esm/icons/circle-icon";
import { timeOfDay } from "../ui/words.ts";
import { useConnection, useConsole } from "./context.ts";

/** Whether what the page shows is what is. */
export function ConnectionStatus() {
	const { state } = useConnection();
	const text = { connecting: "Connecting", live: "Live", lost: "Reconnecting" }[state];
	const status = state === "live" ? "success" : state === "lost" ? "warning" : "custom";
	return (
		<span className="gp-connection" role="status" aria-label={`Connection to the region: ${text}`}>
			<Icon status={status} size="sm">
				<CircleIcon />
			</Icon>
			<span className="gp-connection-text">{text}</span>
		</span>
	);
}

/** Says that the page is out of date, since when, and why. */
export function ConnectionBanner() {
	const connection = useConnection();
	const { live } = useConsole();
	if (connection.state !== "lost") return null;
	return (
		<Banner status="warning" role="alert" className="gp-banner">
			<span>
				<strong>Connection lost, reconnecting.</strong> What you see is from {timeOfDay(connection.since)}.{" "}
				{connection.problem.message}
			</span>
			<Button variant="link" isInline onClick={() => live.reconnect()}>
				Try now
			</Button>
		</Banner>
	);
}
