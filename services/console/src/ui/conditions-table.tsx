import { Label } from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { Condition } from "../api/types.ts";
import { Ago } from "./time.tsx";

const look = { True: "green", False: "orange", Unknown: "grey" } as const;

/** Conditions as the controllers wrote them; `Ready`, the summary, first. */
export function ConditionsTable({ conditions = [] }: { conditions: readonly Condition[] | undefined }) {
	if (conditions.length === 0) return <p className="gp-subtle">The plane has not looked at it yet.</p>;
	const sorted = [...conditions].sort((a, b) => Number(b.type === "Ready") - Number(a.type === "Ready"));
	return (
		<Table variant="compact" borders={false} aria-label="Conditions" gridBreakPoint="grid-lg">
			<Thead>
				<Tr>
					<Th>Condition</Th>
					<Th>Status</Th>
					<Th>Since</Th>
					<Th width={60}>What it means</Th>
				</Tr>
			</Thead>
			<Tbody>
				{sorted.map(({ type, status, reason, message, lastTransitionTime }) => (
					<Tr key={type}>
						<Td dataLabel="Condition" modifier="nowrap">
							{type}
						</Td>
						<Td dataLabel="Status">
							<Label isCompact color={look[status]}>
								{status}
							</Label>
						</Td>
						<Td dataLabel="Since" modifier="nowrap">
							<Ago at={lastTransitionTime} suffix="" />
						</Td>
						<Td dataLabel="What it means" modifier="breakWord">
							{message} <span className="gp-subtle">{reason}</span>
						</Td>
					</Tr>
				))}
			</Tbody>
		</Table>
	);
}
