import {
	Divider,
	Dropdown,
	DropdownGroup,
	DropdownItem,
	DropdownList,
	MenuToggle,
	type MenuToggleElement,
} from "@patternfly/react-core";
import AdjustIcon from "@patternfly/react-icons/dist/esm/icons/adjust-icon";
import UserIcon from "@patternfly/react-icons/dist/esm/icons/user-icon";
import { type Ref, useState } from "react";
import { useConsole } from "./context.ts";
import { useRegion } from "./region.ts";
import { setTheme, storedTheme, type Theme } from "./theme.ts";
import { useToasts } from "./toasts.tsx";

const themes: readonly { theme: Theme; title: string }[] = [
	{ theme: "system", title: "As the system" },
	{ theme: "light", title: "Light" },
	{ theme: "dark", title: "Dark" },
];

export function ThemeMenu() {
	const [isOpen, setIsOpen] = useState(false);
	const [theme, choose] = useState(storedTheme);
	return (
		<Dropdown
			isOpen={isOpen}
			onOpenChange={setIsOpen}
			popperProps={{ position: "right" }}
			onSelect={(_event, value) => {
				setTheme(value as Theme);
				choose(value as Theme);
				setIsOpen(false);
			}}
			toggle={(toggle: Ref<MenuToggleElement>) => (
				<MenuToggle
					ref={toggle}
					variant="plain"
					aria-label="Appearance"
					isExpanded={isOpen}
					onClick={() => setIsOpen(!isOpen)}
					icon={<AdjustIcon />}
				/>
			)}
		>
			<DropdownList>
				{themes.map(({ theme: value, title }) => (
					<DropdownItem key={value} value={value} isSelected={value === theme}>
						{title}
					</DropdownItem>
				))}
			</DropdownList>
		</Dropdown>
	);
}

export function UserMenu() {
	const [isOpen, setIsOpen] = useState(false);
	const { user, session } = useConsole();
	const region = useRegion();
	const { failed } = useToasts();
	return (
		<Dropdown
			isOpen={isOpen}
			onOpenChange={setIsOpen}
			onSelect={() => setIsOpen(false)}
			popperProps={{ position: "right" }}
			toggle={(toggle: Ref<MenuToggleElement>) => (
				<MenuToggle
					ref={toggle}
					variant="plainText"
					isExpanded={isOpen}
					onClick={() => setIsOpen(!isOpen)}
					icon={<UserIcon />}
					aria-label={`Signed in as ${user.name}`}
				>
					<span className="gp-user-name">{user.name}</span>
				</MenuToggle>
			)}
		>
			<DropdownGroup label={user.roles.length > 0 ? `Role: ${user.roles.join(", ")}` : "No role"}>
				<DropdownList>
					{region && (
						<>
							<DropdownItem isDisabled description={`Groundplane ${region.version}`}>
								{region.domain}
							</DropdownItem>
							<DropdownItem to="/openapi.json" target="_blank">
								API description
							</DropdownItem>
							<Divider component="li" />
						</>
					)}
					<DropdownItem
						onClick={() => session.signOut().catch((error: unknown) => failed("You are still signed in", error))}
					>
						Sign out
					</DropdownItem>
				</DropdownList>
			</DropdownGroup>
		</Dropdown>
	);
}
