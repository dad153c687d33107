import {
	Button,
	EmptyState,
	EmptyStateActions,
	EmptyStateBody,
	EmptyStateFooter,
	FormSelect,
	FormSelectOption,
	PageSection,
	Pagination,
	SearchInput,
	Toolbar,
	ToolbarContent,
	ToolbarItem,
} from "@patternfly/react-core";
import SearchIcon from "@patternfly/react-icons/dist/esm/icons/search-icon";
import ServerIcon from "@patternfly/react-icons/dist/esm/icons/server-icon";
import { useMemo } from "react";
import { useSearchParams } from "react-router";
import type { HostPhase } from "../api/types.ts";
import { useHosts, useLive } from "../app/context.ts";
import { Loading } from "../ui/loading.tsx";
import { PageHeading } from "../ui/page-heading.tsx";
import { phaseWords, plural } from "../ui/words.ts";
import { AddHostButton } from "./add-host.tsx";
import { hostColumns } from "./columns.tsx";
import { HostMenu } from "./host-actions.tsx";
import { HostTable } from "./host-table.tsx";
import { countPhases, filterHosts, type Order, sortBy } from "./list.ts";

const PER_PAGE = 50;

/** All hosts of the region; what is searched for is in the address, so that it can be sent to a colleague. */
export function HostsPage() {
	const { isLoaded } = useLive();
	const hosts = useHosts();
	const [query, setQuery] = useSearchParams();
	const text = query.get("q") ?? "";
	const phase = (query.get("state") ?? undefined) as HostPhase | undefined;
	const order: Order = {
		key: query.get("sort") ?? "name",
		direction: query.get("direction") === "desc" ? "desc" : "asc",
	};
	const page = Math.max(1, Number(query.get("page")) || 1);
	const change = (values: Record<string, string | undefined>) =>
		setQuery(
			(old) => {
				const next = new URLSearchParams(old);
				if (!("page" in values)) next.delete("page");
				for (const [key, value] of Object.entries(values)) {
					if (value) next.set(key, value);
					else next.delete(key);
				}
				return next;
			},
			{ replace: true },
		);

	const counts = useMemo(() => countPhases(hosts), [hosts]);
	const { key, direction } = order;
	const found = useMemo(
		() => sortBy(filterHosts(hosts, { text, phase }), hostColumns, { key, direction }),
		[hosts, text, phase, key, direction],
	);
	const shown = found.slice((page - 1) * PER_PAGE, page * PER_PAGE);

	return (
		<>
			<PageHeading
				title="Hosts"
				description="Machines whose agent has dialled out to this region."
				actions={<AddHostButton />}
			/>
			<PageSection hasBodyWrapper={false} isFilled>
				{!isLoaded ? (
					<Loading what="Hosts" />
				) : hosts.length === 0 ? (
					<NoHosts />
				) : (
					<>
						<Toolbar inset={{ default: "insetNone" }}>
							<ToolbarContent>
								<ToolbarItem>
									<SearchInput
										aria-label="Search hosts"
										placeholder="Name, cluster or address"
										value={text}
										onChange={(_event, value) => change({ q: value })}
										onClear={() => change({ q: undefined })}
									/>
								</ToolbarItem>
								<ToolbarItem>
									<FormSelect
										aria-label="State"
										value={phase ?? ""}
										onChange={(_event, value) => change({ state: value })}
									>
										<FormSelectOption value="" label={`Any state (${hosts.length})`} />
										{[...counts].map(([each, count]) => (
											<FormSelectOption key={each} value={each} label={`${phaseWords(each)} (${count})`} />
										))}
									</FormSelect>
								</ToolbarItem>
								<ToolbarItem alignSelf="center" className="gp-subtle">
									<span role="status">
										{found.length === hosts.length
											? plural(hosts.length, "host")
											: `${found.length} of ${plural(hosts.length, "host")}`}
									</span>
								</ToolbarItem>
								{found.length > PER_PAGE && (
									<ToolbarItem variant="pagination" align={{ default: "alignEnd" }}>
										<Pagination
											isCompact
											itemCount={found.length}
											perPage={PER_PAGE}
											perPageOptions={[]}
											page={page}
											onSetPage={(_event, next) => change({ page: String(next) })}
										/>
									</ToolbarItem>
								)}
							</ToolbarContent>
						</Toolbar>
						{found.length === 0 ? (
							<EmptyState headingLevel="h2" icon={SearchIcon} titleText="No host is like that" variant="sm">
								<EmptyStateBody>None of {plural(hosts.length, "host")} matches what you search for.</EmptyStateBody>
								<EmptyStateFooter>
									<EmptyStateActions>
										<Button variant="link" onClick={() => change({ q: undefined, state: undefined })}>
											Show all
										</Button>
									</EmptyStateActions>
								</EmptyStateFooter>
							</EmptyState>
						) : (
							<HostTable
								hosts={shown}
								columns={hostColumns}
								order={order}
								onOrder={(next) => change({ sort: next.key, direction: next.direction })}
								actions={(host) => <HostMenu host={host} isPlain />}
							/>
						)}
					</>
				)}
			</PageSection>
		</>
	);
}

export function NoHosts() {
	return (
		<EmptyState headingLevel="h2" icon={ServerIcon} titleText="No hosts yet" variant="sm">
			<EmptyStateBody>
				A machine joins the region by one command. It needs Debian or Ubuntu with systemd, and a way out to this region
				on port 443; nothing has to be opened towards it.
			</EmptyStateBody>
			<EmptyStateFooter>
				<EmptyStateActions>
					<AddHostButton />
				</EmptyStateActions>
			</EmptyStateFooter>
		</EmptyState>
	);
}
