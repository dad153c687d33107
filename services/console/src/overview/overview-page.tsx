import { Card, CardBody, CardTitle, Icon, PageSection } from "@patternfly/react-core";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import InfoCircleIcon from "@patternfly/react-icons/dist/esm/icons/info-circle-icon";
import type { ReactNode } from "react";
import { Link } from "react-router";
import { useClusters, useConsole, useHosts, useLive } from "../app/context.ts";
import { useRegion } from "../app/region.ts";
import { ClusterTable } from "../clusters/cluster-table.tsx";
import { NoClusters } from "../clusters/clusters-page.tsx";
import { hostColumns } from "../hosts/columns.tsx";
import { ApproveButton } from "../hosts/host-actions.tsx";
import { HostTable } from "../hosts/host-table.tsx";
import { NoHosts } from "../hosts/hosts-page.tsx";
import { type Concern, clusterPhase, concernsOf, hostPhase, underWay, type Work } from "../live/derive.ts";
import { ActivityList } from "../ui/activity-list.tsx";
import { Loading } from "../ui/loading.tsx";
import { PageHeading } from "../ui/page-heading.tsx";
import { Panel } from "../ui/panel.tsx";
import { compareUrgency } from "../ui/state-label.tsx";
import { Ago, useNow } from "../ui/time.tsx";
import { phaseWords } from "../ui/words.ts";
import { WorkProgress } from "../ui/work-progress.tsx";

/** More than this of a kind is a matter for its own page. */
const MOST = 10;

/** The region at a glance: what there is, what is being done on which host, and what needs a person. */
export function OverviewPage() {
	const region = useRegion();
	const { isLoaded, activity } = useLive();
	const { live } = useConsole();
	const hosts = useHosts();
	const clusters = useClusters();
	const concerns = concernsOf(hosts, clusters, useNow());
	const work = underWay(hosts, clusters);
	const urgentFirst = [...hosts].sort((a, b) => compareUrgency(hostPhase(a), hostPhase(b)));
	return (
		<>
			<PageHeading
				title="Overview"
				description={region ? `${region.domain} · Groundplane ${region.version}` : "\u00a0"}
			/>
			<PageSection hasBodyWrapper={false} isFilled>
				{!isLoaded ? (
					<Loading what="Region" />
				) : (
					<div className="gp-stack">
						<div className="gp-figures">
							<Figure title="Hosts ready" to="/hosts" value={count(hosts, hostPhase, "Ready")} of={hosts.length}>
								{breakdown(hosts.map(hostPhase))}
							</Figure>
							<Figure
								title="Clusters ready"
								to="/clusters"
								value={count(clusters, clusterPhase, "Ready")}
								of={clusters.length}
							>
								{breakdown(clusters.map(clusterPhase))}
							</Figure>
							<Figure title="Under way" value={work.length}>
								{work.length === 0 ? "Nothing is being changed" : (work[0]?.what ?? "")}
							</Figure>
							<Figure title="Needs a person" value={concerns.length}>
								{concerns.length === 0 ? "Nothing" : (concerns[0]?.title ?? "")}
							</Figure>
						</div>
						<div className="gp-columns">
							<div className="gp-column">
								{concerns.length > 0 && (
									<Panel title="Needs a person">
										<Concerns concerns={concerns} />
									</Panel>
								)}
								<Panel title="Clusters" actions={clusters.length > 0 && <Link to="/clusters">All clusters</Link>}>
									{clusters.length === 0 ? <NoClusters /> : <ClusterTable clusters={clusters.slice(0, MOST)} />}
									<More of={clusters.length} to="/clusters" />
								</Panel>
							</div>
							<div className="gp-column">
								<Panel title="Under way">
									<UnderWay work={work} />
								</Panel>
								<Panel title="Activity">
									<ActivityList activity={activity} openedAt={live.openedAt} most={6} />
								</Panel>
							</div>
						</div>
						<Panel title="Hosts" actions={hosts.length > 0 && <Link to="/hosts">All hosts</Link>}>
							{hosts.length === 0 ? (
								<NoHosts />
							) : (
								<HostTable hosts={urgentFirst.slice(0, MOST)} columns={hostColumns} />
							)}
							<More of={hosts.length} to="/hosts" />
						</Panel>
					</div>
				)}
			</PageSection>
		</>
	);
}

const count = <Item, Phase>(items: readonly Item[], phaseOf: (item: Item) => Phase, phase: Phase) =>
	items.filter((item) => phaseOf(item) === phase).length;

/** `2 working, 1 failed`: the phases of what is not ready. */
function breakdown(phases: readonly string[]): string {
	const counts = new Map<string, number>();
	for (const phase of phases) if (phase !== "Ready") counts.set(phase, (counts.get(phase) ?? 0) + 1);
	if (phases.length === 0) return "None yet";
	if (counts.size === 0) return "All of them";
	return [...counts].map(([phase, number]) => `${number} ${phaseWords(phase).toLowerCase()}`).join(", ");
}

function Figure({
	title,
	value,
	of,
	to,
	children,
}: {
	title: string;
	value: number;
	of?: number;
	to?: string;
	children: ReactNode;
}) {
	return (
		<Card isCompact isFullHeight>
			<CardTitle component="h2">{to ? <Link to={to}>{title}</Link> : title}</CardTitle>
			<CardBody>
				<div className="gp-figure">
					{value}
					{of !== undefined && <small> / {of}</small>}
				</div>
				<div className="gp-subtle gp-clamp">{children}</div>
			</CardBody>
		</Card>
	);
}

function UnderWay({ work }: { work: readonly Work[] }) {
	return (
		<div aria-live="polite">
			{work.length === 0 ? (
				<p className="gp-subtle">Nothing is being changed.</p>
			) : (
				<ul className="gp-list">
					{work.map(({ key, kind, name, host, what, detail, progress, since }) => (
						<li key={key}>
							<div>
								<Link to={`/${kind}s/${name}`}>{name}</Link> {what}
								{host && host !== name && (
									<>
										{" on "}
										<Link to={`/hosts/${host}`}>{host}</Link>
									</>
								)}
							</div>
							{(detail || since) && (
								<div className="gp-subtle gp-wrap">
									{detail}
									{detail && since && " · "}
									{since && <Ago at={since} suffix="" />}
								</div>
							)}
							{kind === "host" && <WorkProgress progress={progress} label={`${what} on ${name}`} />}
						</li>
					))}
				</ul>
			)}
		</div>
	);
}

function More({ of, to }: { of: number; to: string }) {
	if (of <= MOST) return null;
	return (
		<p className="gp-subtle">
			And {of - MOST} more. <Link to={to}>Show all</Link>
		</p>
	);
}

const toneIcons = { danger: ExclamationCircleIcon, warning: ExclamationTriangleIcon, info: InfoCircleIcon } as const;

function Concerns({ concerns }: { concerns: readonly Concern[] }) {
	const { hosts } = useLive();
	return (
		<div aria-live="polite">
			<ul className="gp-list">
				{concerns.slice(0, MOST).map(({ key, tone, kind, name, title, message, next }) => {
					const host = kind === "host" ? hosts.get(name) : undefined;
					const ToneIcon = toneIcons[tone];
					return (
						<li key={key} className="gp-concern">
							<Icon status={tone} isInline>
								<ToneIcon />
							</Icon>
							<div>
								<div>
									<strong>{title}</strong>: <Link to={`/${kind}s/${name}`}>{name}</Link>
								</div>
								<div className="gp-subtle">
									{message} {next}
								</div>
							</div>
							{host && <ApproveButton host={host} isCompact />}
						</li>
					);
				})}
			</ul>
			{concerns.length > MOST && <p className="gp-subtle">And {concerns.length - MOST} more.</p>}
		</div>
	);
}
