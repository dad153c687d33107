import { EmptyState, EmptyStateBody, PageSection } from "@patternfly/react-core";
import ClusterIcon from "@patternfly/react-icons/dist/esm/icons/cluster-icon";
import { useClusters, useHosts, useLive } from "../app/context.ts";
import { hostPhase } from "../live/derive.ts";
import { Loading } from "../ui/loading.tsx";
import { PageHeading } from "../ui/page-heading.tsx";
import { plural } from "../ui/words.ts";
import { ClusterMenu } from "./cluster-actions.tsx";
import { ClusterTable } from "./cluster-table.tsx";

export function ClustersPage() {
	const { isLoaded } = useLive();
	const clusters = useClusters();
	return (
		<>
			<PageHeading title="Clusters" description="Kubernetes clusters on this region's hosts." />
			<PageSection hasBodyWrapper={false} isFilled>
				{!isLoaded ? (
					<Loading what="Clusters" />
				) : clusters.length === 0 ? (
					<NoClusters />
				) : (
					<ClusterTable clusters={clusters} actions={(cluster) => <ClusterMenu cluster={cluster} isPlain />} />
				)}
			</PageSection>
		</>
	);
}

export function NoClusters() {
	const free = useHosts().filter((host) => hostPhase(host) === "Ready" && !host.status?.cluster).length;
	return (
		<EmptyState headingLevel="h2" icon={ClusterIcon} titleText="No clusters yet" variant="sm">
			<EmptyStateBody>
				<p>
					{free === 0
						? "A cluster needs at least one host that is ready and free; there is none yet."
						: `${plural(free, "host is", "hosts are")} ready and free for one.`}
				</p>
				<p>
					Write down what it should be in a file, and run{" "}
					<code className="gp-mono">gp cluster apply -f FILE --wait</code>.
				</p>
			</EmptyStateBody>
		</EmptyState>
	);
}
