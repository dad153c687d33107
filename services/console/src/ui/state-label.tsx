import { Label } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ClockIcon from "@patternfly/react-icons/dist/esm/icons/clock-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import InProgressIcon from "@patternfly/react-icons/dist/esm/icons/in-progress-icon";
import TrashIcon from "@patternfly/react-icons/dist/esm/icons/trash-icon";
import UnpluggedIcon from "@patternfly/react-icons/dist/esm/icons/unplugged-icon";
import UserCheckIcon from "@patternfly/react-icons/dist/esm/icons/user-check-icon";
import WrenchIcon from "@patternfly/react-icons/dist/esm/icons/wrench-icon";
import type { ComponentType } from "react";
import type { ClusterMember, ClusterPhase, HostPhase, HostRoleStatus } from "../api/types.ts";
import { phaseWords } from "./words.ts";

type Phase = HostPhase | ClusterPhase | ClusterMember["phase"] | HostRoleStatus["phase"];
type Color = "green" | "blue" | "orange" | "red" | "grey" | "purple";

const looks: Record<Phase, readonly [Color, ComponentType]> = {
	Ready: ["green", CheckCircleIcon],
	Applied: ["green", CheckCircleIcon],
	Pending: ["grey", ClockIcon],
	Waiting: ["grey", ClockIcon],
	Working: ["blue", InProgressIcon],
	Provisioning: ["blue", InProgressIcon],
	Updating: ["blue", InProgressIcon],
	Applying: ["blue", InProgressIcon],
	Joining: ["blue", InProgressIcon],
	AwaitingApproval: ["purple", UserCheckIcon],
	Maintenance: ["purple", WrenchIcon],
	Degraded: ["orange", ExclamationTriangleIcon],
	NotReady: ["orange", ExclamationTriangleIcon],
	Disconnected: ["red", UnpluggedIcon],
	Failed: ["red", ExclamationCircleIcon],
	Deleting: ["grey", TrashIcon],
	Leaving: ["grey", TrashIcon],
	Removing: ["grey", TrashIcon],
};

/** A phase in the colours that it has everywhere. */
export function StateLabel({ phase, isCompact = true }: { phase: Phase; isCompact?: boolean }) {
	const [color, Icon] = looks[phase];
	return (
		<Label color={color} isCompact={isCompact} icon={<Icon />} className="gp-nowrap">
			{phaseWords(phase)}
		</Label>
	);
}

const order = Object.keys(looks);
const urgency: readonly Color[] = ["red", "orange", "purple", "blue", "grey", "green"];

/** Orders phases by how much they want to be looked at. */
export const compareUrgency = (a: Phase, b: Phase): number =>
	urgency.indexOf(looks[a][0]) - urgency.indexOf(looks[b][0]) || order.indexOf(a) - order.indexOf(b);
