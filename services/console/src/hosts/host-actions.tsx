import {
	Button,
	Divider,
	Dropdown,
	DropdownItem,
	DropdownList,
	MenuToggle,
	type MenuToggleElement,
	Tooltip,
} from "@patternfly/react-core";
import EllipsisVIcon from "@patternfly/react-icons/dist/esm/icons/ellipsis-v-icon";
import { useMutation } from "@tanstack/react-query";
import { type Ref, useState } from "react";
import type { Host, HostChange } from "../api/types.ts";
import { useConsole, useMayOperate } from "../app/context.ts";
import { useToasts } from "../app/toasts.tsx";
import { NEEDS_OPERATOR } from "../auth/permissions.ts";
import { ConfirmDelete } from "../ui/confirm-delete.tsx";

/** What can be changed on a host. The table shows the change when the region tells of it. */
export function useHostChange(name: string) {
	const { api } = useConsole();
	const { done, failed } = useToasts();
	return useMutation({
		mutationFn: ({ change }: { change: HostChange; what: string }) => api.changeHost(name, change),
		onSuccess: (_host, { what }) => done(what),
		onError: (error) => failed(`${name} was not changed`, error),
	});
}

export function ApproveButton({ host, isCompact = false }: { host: Host; isCompact?: boolean }) {
	const { name } = host.metadata;
	const change = useHostChange(name);
	const may = useMayOperate();
	if (host.spec.approved || host.metadata.deletionTimestamp) return null;
	const button = (
		<Button
			variant="primary"
			size={isCompact ? "sm" : "default"}
			isAriaDisabled={!may}
			isLoading={change.isPending}
			onClick={() => change.mutate({ change: { approved: true }, what: `${name} is approved` })}
		>
			Approve
		</Button>
	);
	return may ? button : <Tooltip content={NEEDS_OPERATOR}>{button}</Tooltip>;
}

/** The actions on a host that are not the next thing to do. */
export function HostMenu({ host, isPlain = false }: { host: Host; isPlain?: boolean }) {
	const { name } = host.metadata;
	const { api } = useConsole();
	const { done } = useToasts();
	const [isOpen, setIsOpen] = useState(false);
	const [isDeleting, setIsDeleting] = useState(false);
	const change = useHostChange(name);
	const may = useMayOperate();
	const isLeaving = host.metadata.deletionTimestamp !== undefined;
	const lock = { isAriaDisabled: !may || isLeaving, ...(!may && { description: NEEDS_OPERATOR }) };
	const { maintenance } = host.spec;
	return (
		<>
			<Dropdown
				isOpen={isOpen}
				onOpenChange={setIsOpen}
				onSelect={() => setIsOpen(false)}
				popperProps={{ position: "right" }}
				toggle={(toggle: Ref<MenuToggleElement>) =>
					isPlain ? (
						<MenuToggle
							ref={toggle}
							variant="plain"
							aria-label={`Actions on ${name}`}
							isExpanded={isOpen}
							onClick={() => setIsOpen(!isOpen)}
							icon={<EllipsisVIcon />}
						/>
					) : (
						<MenuToggle ref={toggle} isExpanded={isOpen} onClick={() => setIsOpen(!isOpen)}>
							Actions
						</MenuToggle>
					)
				}
			>
				<DropdownList>
					{!host.spec.approved && (
						<DropdownItem
							{...lock}
							onClick={() => change.mutate({ change: { approved: true }, what: `${name} is approved` })}
						>
							Approve
						</DropdownItem>
					)}
					<DropdownItem
						{...lock}
						onClick={() =>
							change.mutate({
								change: { maintenance: !maintenance },
								what: maintenance ? `${name} is back from maintenance` : `${name} is in maintenance`,
							})
						}
					>
						{maintenance ? "End maintenance" : "Put into maintenance"}
					</DropdownItem>
					<Divider component="li" />
					<DropdownItem {...lock} isDanger onClick={() => setIsDeleting(true)}>
						Remove from the region…
					</DropdownItem>
				</DropdownList>
			</Dropdown>
			{isDeleting && (
				<ConfirmDelete
					title={`Remove ${name}?`}
					name={name}
					action="Remove"
					onClose={() => setIsDeleting(false)}
					onConfirm={async () => {
						await api.deleteHost(name);
						done(`${name} is being removed`);
					}}
				>
					<p>
						Everything that the region put on this host is taken off again, then its certificate is revoked. The machine
						can join again with a new join command.
					</p>
					{host.status?.cluster && (
						<p>
							It is a member of cluster <strong>{host.status.cluster}</strong>: its pods go elsewhere, if there is room.
						</p>
					)}
				</ConfirmDelete>
			)}
		</>
	);
}
