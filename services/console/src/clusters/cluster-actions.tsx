import {
	Button,
	Dropdown,
	DropdownItem,
	DropdownList,
	MenuToggle,
	type MenuToggleElement,
	Tooltip,
} from "@patternfly/react-core";
import DownloadIcon from "@patternfly/react-icons/dist/esm/icons/download-icon";
import EllipsisVIcon from "@patternfly/react-icons/dist/esm/icons/ellipsis-v-icon";
import { useMutation } from "@tanstack/react-query";
import { type Ref, useState } from "react";
import type { Cluster } from "../api/types.ts";
import { useConsole, useMayOperate } from "../app/context.ts";
import { useToasts } from "../app/toasts.tsx";
import { NEEDS_OPERATOR } from "../auth/permissions.ts";
import { ConfirmDelete } from "../ui/confirm-delete.tsx";
import { plural } from "../ui/words.ts";

function save(file: string, text: string): void {
	const url = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
	const link = document.createElement("a");
	link.href = url;
	link.download = file;
	link.click();
	URL.revokeObjectURL(url);
}

/** Downloads a kubeconfig. It holds no secret: kubectl asks `gp` for a token when it needs one. */
export function KubeconfigButton({ cluster }: { cluster: Cluster }) {
	const { name } = cluster.metadata;
	const { api } = useConsole();
	const { failed } = useToasts();
	const download = useMutation({
		mutationFn: () => api.kubeconfig(name),
		onSuccess: (text) => save(`${name}.kubeconfig`, text),
		onError: (error) => failed("There is no kubeconfig", error),
	});
	return (
		<Tooltip content="kubectl asks gp for a token when it uses this: it holds no secret.">
			<Button
				variant="secondary"
				icon={<DownloadIcon />}
				isLoading={download.isPending}
				onClick={() => download.mutate()}
			>
				Kubeconfig
			</Button>
		</Tooltip>
	);
}

export function ClusterMenu({ cluster, isPlain = false }: { cluster: Cluster; isPlain?: boolean }) {
	const { name } = cluster.metadata;
	const { api } = useConsole();
	const { done } = useToasts();
	const may = useMayOperate();
	const [isOpen, setIsOpen] = useState(false);
	const [isDeleting, setIsDeleting] = useState(false);
	const members = cluster.status?.members?.length ?? 0;
	return (
		<>
			<Dropdown
				isOpen={isOpen}
				onOpenChange={setIsOpen}
				onSelect={() => setIsOpen(false)}
				popperProps={{ position: "right" }}
				toggle={(toggle: Ref<MenuToggleElement>) => (
					<MenuToggle
						ref={toggle}
						variant={isPlain ? "plain" : "default"}
						isExpanded={isOpen}
						onClick={() => setIsOpen(!isOpen)}
						{...(isPlain && { "aria-label": `Actions on ${name}`, icon: <EllipsisVIcon /> })}
					>
						{!isPlain && "Actions"}
					</MenuToggle>
				)}
			>
				<DropdownList>
					<DropdownItem
						isDanger
						isAriaDisabled={!may || cluster.metadata.deletionTimestamp !== undefined}
						{...(!may && { description: NEEDS_OPERATOR })}
						onClick={() => setIsDeleting(true)}
					>
						Delete cluster…
					</DropdownItem>
				</DropdownList>
			</Dropdown>
			{isDeleting && (
				<ConfirmDelete
					title={`Delete cluster ${name}?`}
					name={name}
					action="Delete"
					onClose={() => setIsDeleting(false)}
					onConfirm={async () => {
						await api.deleteCluster(name);
						done(`${name} is being deleted`);
					}}
				>
					<p>
						The cluster ends with everything that runs in it, and all that is stored on its nodes. This can't be undone.
					</p>
					<p>
						Its {plural(members, "host")} stay in the region: each is drained, reset and left as it was before, free for
						another cluster.
					</p>
				</ConfirmDelete>
			)}
		</>
	);
}
