import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { ReactNode } from "react";
import { Link } from "react-router";
import type { Cluster } from "../api/types.ts";
import { clusterPhase } from "../live/derive.ts";
import { StateLabel } from "../ui/state-label.tsx";
import { Ago } from "../ui/time.tsx";
import { readyNodes } from "./list.ts";

export function ClusterTable({
	clusters,
	actions,
}: {
	clusters: readonly Cluster[];
	actions?: (cluster: Cluster) => ReactNode;
}) {
	return (
		<Table variant="compact" aria-label="Clusters" gridBreakPoint="grid-xl">
			<Thead>
				<Tr>
					<Th modifier="nowrap">Name</Th>
					<Th>State</Th>
					<Th modifier="nowrap">Nodes ready</Th>
					<Th modifier="nowrap">Version</Th>
					<Th>Under way</Th>
					<Th>Age</Th>
					{actions && <Th screenReaderText="Actions" />}
				</Tr>
			</Thead>
			<Tbody>
				{clusters.map((cluster) => {
					const { name, uid, creationTimestamp } = cluster.metadata;
					const { ready, total } = readyNodes(cluster);
					const { progress, version } = cluster.status ?? {};
					return (
						<Tr key={uid ?? name}>
							<Td dataLabel="Name">
								<Link to={`/clusters/${name}`} className="gp-name">
									{name}
								</Link>
							</Td>
							<Td dataLabel="State">
								<StateLabel phase={clusterPhase(cluster)} />
							</Td>
							<Td dataLabel="Nodes ready" modifier="nowrap">
								{total === 0 ? <span className="gp-subtle">–</span> : `${ready}/${total}`}
							</Td>
							<Td dataLabel="Version" modifier="nowrap">
								{version ?? <span className="gp-subtle">{cluster.spec.version}</span>}
							</Td>
							<Td dataLabel="Under way">
								{progress ? (
									<div>
										{progress.step}
										{progress.host && (
											<>
												{" on "}
												<Link to={`/hosts/${progress.host}`}>{progress.host}</Link>
											</>
										)}
										{progress.detail && <div className="gp-subtle">{progress.detail}</div>}
									</div>
								) : (
									<span className="gp-subtle">–</span>
								)}
							</Td>
							<Td dataLabel="Age" modifier="nowrap">
								<Ago at={creationTimestamp} suffix="" />
							</Td>
							{actions && <Td isActionCell>{actions(cluster)}</Td>}
						</Tr>
					);
				})}
			</Tbody>
		</Table>
	);
}
