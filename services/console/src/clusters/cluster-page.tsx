import {
	Alert,
	ClipboardCopy,
	DescriptionList,
	DescriptionListDescription,
	DescriptionListGroup,
	DescriptionListTerm,
	PageSection,
} from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { ReactNode } from "react";
import { Link, useParams } from "react-router";
import type { Cluster } from "../api/types.ts";
import { useConsole, useLive } from "../app/context.ts";
import { NotFound } from "../app/faults.tsx";
import { clusterPhase, readyMessage } from "../live/derive.ts";
import { ActivityList } from "../ui/activity-list.tsx";
import { ConditionsTable } from "../ui/conditions-table.tsx";
import { Loading } from "../ui/loading.tsx";
import { PageHeading } from "../ui/page-heading.tsx";
import { Panel } from "../ui/panel.tsx";
import { StateLabel } from "../ui/state-label.tsx";
import { Ago } from "../ui/time.tsx";
import { dateAndTime } from "../ui/words.ts";
import { WorkProgress } from "../ui/work-progress.tsx";
import { ClusterMenu, KubeconfigButton } from "./cluster-actions.tsx";
import { memberRows, readyNodes } from "./list.ts";

export function ClusterPage() {
	const { name = "" } = useParams();
	const { isLoaded, clusters, hosts, activity } = useLive();
	const { live } = useConsole();
	const cluster = clusters.get(name);
	const parent = { title: "Clusters", to: "/clusters" };
	if (!cluster) {
		if (isLoaded) return <NotFound what={`There is no cluster ${name} in this region. It may have been deleted.`} />;
		return (
			<>
				<PageHeading title={name} parent={parent} />
				<PageSection hasBodyWrapper={false}>
					<Loading what={name} />
				</PageSection>
			</>
		);
	}
	const { status, metadata } = cluster;
	const { ready, total } = readyNodes(cluster);
	const members = memberRows(cluster, hosts);
	return (
		<>
			<PageHeading
				title={name}
				parent={parent}
				labels={<StateLabel phase={clusterPhase(cluster)} isCompact={false} />}
				description={`Kubernetes ${status?.version ?? cluster.spec.version}${total > 0 ? ` · ${ready} of ${total} nodes ready` : ""}`}
				actions={
					<>
						<KubeconfigButton cluster={cluster} />
						<ClusterMenu cluster={cluster} />
					</>
				}
			/>
			<PageSection hasBodyWrapper={false} isFilled>
				<div className="gp-stack">
					<ClusterNotice cluster={cluster} />
					<div className="gp-columns">
						<div className="gp-column">
							<Panel title="Members">
								{members.length === 0 ? (
									<p className="gp-subtle">No host has been taken yet.</p>
								) : (
									<Table variant="compact" borders={false} aria-label="Members" gridBreakPoint="grid-md">
										<Thead>
											<Tr>
												<Th>Host</Th>
												<Th>Role</Th>
												<Th>State</Th>
												<Th modifier="nowrap">Version</Th>
												<Th width={40}>Under way</Th>
											</Tr>
										</Thead>
										<Tbody>
											{members.map(({ host, role, pool, phase, version, message, step, progress, address }) => (
												<Tr key={host}>
													<Td dataLabel="Host">
														<Link to={`/hosts/${host}`} className="gp-name">
															{host}
														</Link>
														{address && <div className="gp-subtle">{address}</div>}
													</Td>
													<Td dataLabel="Role" modifier="nowrap">
														{role === "control-plane" ? "Control plane" : "Worker"}
														{pool && <div className="gp-subtle">{pool}</div>}
													</Td>
													<Td dataLabel="State">
														<StateLabel phase={phase} />
													</Td>
													<Td dataLabel="Version" modifier="nowrap">
														{version ?? <span className="gp-subtle">–</span>}
													</Td>
													<Td dataLabel="Under way" modifier="breakWord">
														{step ?? message ?? <span className="gp-subtle">–</span>}
														<WorkProgress progress={progress} label={`Steps on ${host}`} />
													</Td>
												</Tr>
											))}
										</Tbody>
									</Table>
								)}
							</Panel>
							<Panel title="Conditions">
								<ConditionsTable conditions={status?.conditions} />
							</Panel>
						</div>
						<div className="gp-column">
							<Panel title="Activity">
								<ActivityList
									activity={activity.filter((each) => each.kind === "cluster" && each.name === name)}
									openedAt={live.openedAt}
									showNames={false}
								/>
							</Panel>
							<Panel title="Access">
								<Access cluster={cluster} />
							</Panel>
							<Panel title="Settings">
								<Settings cluster={cluster} created={metadata.creationTimestamp} />
							</Panel>
						</div>
					</div>
				</div>
			</PageSection>
		</>
	);
}

/** What is being done now and on which host, or why nothing is. */
function ClusterNotice({ cluster }: { cluster: Cluster }) {
	const phase = clusterPhase(cluster);
	const { progress } = cluster.status ?? {};
	const message = readyMessage(cluster);
	const variant = { Failed: "danger", Degraded: "warning", Pending: "warning" }[phase as string] ?? "info";
	const isQuiet = phase === "Ready" || (phase === "Pending" && !message);
	return (
		// Always there, so that what comes into it is read out.
		<div aria-live="polite">
			{!isQuiet && (
				<Alert
					isInline
					variant={variant as "danger" | "warning" | "info"}
					title={
						progress ? (
							<>
								{progress.step}
								{progress.host && (
									<>
										{" on "}
										<Link to={`/hosts/${progress.host}`}>{progress.host}</Link>
									</>
								)}
							</>
						) : phase === "Pending" ? (
							"This cluster can't be made yet"
						) : (
							phase
						)
					}
				>
					{progress?.detail ?? message}
					{progress?.since && (
						<div className="gp-subtle">
							<Ago at={progress.since} suffix="" /> at this step
						</div>
					)}
				</Alert>
			)}
		</div>
	);
}

function Entry({ term, children }: { term: string; children: ReactNode }) {
	return (
		<DescriptionListGroup>
			<DescriptionListTerm>{term}</DescriptionListTerm>
			<DescriptionListDescription className="gp-wrap">{children}</DescriptionListDescription>
		</DescriptionListGroup>
	);
}

function Access({ cluster: { metadata, spec } }: { cluster: Cluster }) {
	return (
		<DescriptionList isCompact>
			<Entry term="With gp and kubectl">
				<ClipboardCopy isReadOnly isCode hoverTip="Copy" clickTip="Copied" textAriaLabel="Command">
					{`gp cluster kubeconfig ${metadata.name} > ${metadata.name}.kubeconfig`}
				</ClipboardCopy>
			</Entry>
			<Entry term="API server through the region">
				<span className="gp-mono">{`${location.origin}/k8s/clusters/${metadata.name}`}</span>
			</Entry>
			{spec.endpoint && (
				<Entry term="At the site">
					<span className="gp-mono">{spec.endpoint}</span>
				</Entry>
			)}
		</DescriptionList>
	);
}

function Settings({ cluster: { spec, status }, created }: { cluster: Cluster; created: string | undefined }) {
	const { network, addons, upgradePolicy } = spec;
	return (
		<DescriptionList isCompact isHorizontal horizontalTermWidthModifier={{ default: "12ch" }}>
			<Entry term="Version">{spec.version}</Entry>
			<Entry term="Pods">
				{network.podSubnet} <span className="gp-subtle">{network.cni}</span>
			</Entry>
			<Entry term="Services">
				{network.serviceSubnet} <span className="gp-subtle">{network.dnsDomain}</span>
			</Entry>
			<Entry term="Add-ons">
				{[
					addons.coredns && "CoreDNS",
					addons.kubeProxy && "kube-proxy",
					addons.metricsServer && "metrics-server",
					addons.localPathStorage.enabled && "local-path storage",
					addons.nodeExporter && "node-exporter",
					addons.prometheus.enabled && "Prometheus",
					addons.sriov && "SR-IOV",
				]
					.filter(Boolean)
					.join(", ") || "none"}
			</Entry>
			<Entry term="At once">
				{upgradePolicy.maxUnavailableWorkers === 1 ? "1 worker" : `${upgradePolicy.maxUnavailableWorkers} workers`} out
				for changes, drained within {upgradePolicy.drainTimeout}
			</Entry>
			{status?.lastBackup && <Entry term="Last backup">{dateAndTime(Date.parse(status.lastBackup))}</Entry>}
			<Entry term="Made">
				<Ago at={created} />
			</Entry>
		</DescriptionList>
	);
}
