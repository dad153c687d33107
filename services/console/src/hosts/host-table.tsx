import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { ReactNode } from "react";
import type { Host } from "../api/types.ts";
import type { HostColumn } from "./columns.tsx";
import type { Order } from "./list.ts";

export function HostTable({
	hosts,
	columns,
	order,
	onOrder,
	actions,
}: {
	hosts: readonly Host[];
	columns: readonly HostColumn[];
	order?: Order;
	onOrder?: (order: Order) => void;
	actions?: (host: Host) => ReactNode;
}) {
	const index = columns.findIndex(({ key }) => key === order?.key);
	return (
		<Table variant="compact" aria-label="Hosts" gridBreakPoint="grid-xl">
			<Thead>
				<Tr>
					{columns.map(({ key, title, compare }, columnIndex) => (
						<Th
							key={key}
							modifier="nowrap"
							{...(order &&
								onOrder &&
								compare && {
									sort: {
										sortBy: { index, direction: order.direction },
										onSort: (_event, _index, direction) => onOrder({ key, direction }),
										columnIndex,
									},
								})}
						>
							{title}
						</Th>
					))}
					{actions && <Th screenReaderText="Actions" />}
				</Tr>
			</Thead>
			<Tbody>
				{hosts.map((host) => (
					<Tr key={host.metadata.uid ?? host.metadata.name}>
						{columns.map(({ key, title, modifier, cell }) => (
							<Td key={key} dataLabel={title} {...(modifier && { modifier })}>
								{cell(host)}
							</Td>
						))}
						{actions && <Td isActionCell>{actions(host)}</Td>}
					</Tr>
				))}
			</Tbody>
		</Table>
	);
}
