import {
	Masthead,
	MastheadBrand,
	MastheadContent,
	MastheadLogo,
	MastheadMain,
	MastheadToggle,
	Nav,
	NavItem,
	NavList,
	Page,
	PageSidebar,
	PageSidebarBody,
	PageToggleButton,
	SkipToContent,
	Toolbar,
	ToolbarContent,
	ToolbarGroup,
	ToolbarItem,
} from "@patternfly/react-core";
import { useEffect, useState } from "react";
import { Link, Outlet, useLocation } from "react-router";
import { ConnectionBanner, ConnectionStatus } from "./connection.tsx";
import { useClusters, useHosts } from "./context.ts";
import { ThemeMenu, UserMenu } from "./menus.tsx";
import { useRegion } from "./region.ts";

const sections = [
	{ to: "/", title: "Overview" },
	{ to: "/hosts", title: "Hosts" },
	{ to: "/clusters", title: "Clusters" },
] as const;

const isNarrow = () => window.innerWidth < 1200;

/** What surrounds every page: masthead, navigation, the state of the connection. */
export function Shell() {
	const { pathname } = useLocation();
	const [isOpen, setIsOpen] = useState(() => !isNarrow());
	// On a narrow screen the navigation lies over the page: going somewhere closes it.
	// biome-ignore lint/correctness/useExhaustiveDependencies: it is the change of place that matters
	useEffect(() => {
		if (isNarrow()) setIsOpen(false);
	}, [pathname]);
	return (
		<Page
			mainContainerId="main"
			mainAriaLabel="Content"
			skipToContent={<SkipToContent href="#main">Skip to content</SkipToContent>}
			onPageResize={(_event, { mobileView }: { mobileView: boolean }) => setIsOpen(!mobileView)}
			masthead={<Head isOpen={isOpen} onToggle={() => setIsOpen(!isOpen)} />}
			sidebar={
				<PageSidebar isSidebarOpen={isOpen}>
					<PageSidebarBody>
						<Navigation pathname={pathname} />
					</PageSidebarBody>
				</PageSidebar>
			}
			banner={<ConnectionBanner />}
		>
			<Outlet />
		</Page>
	);
}

function Head({ isOpen, onToggle }: { isOpen: boolean; onToggle: () => void }) {
	const region = useRegion();
	return (
		<Masthead>
			<MastheadMain>
				<MastheadToggle>
					<PageToggleButton
						isHamburgerButton
						aria-label="Navigation"
						isSidebarOpen={isOpen}
						onSidebarToggle={onToggle}
						id="navigation-toggle"
					/>
				</MastheadToggle>
				<MastheadBrand>
					<MastheadLogo component={(props) => <Link {...props} to="/" aria-label="Groundplane, overview" />}>
						<img src="/icon.svg" alt="" className="gp-logo" />
						<span className="gp-brand">Groundplane</span>
					</MastheadLogo>
				</MastheadBrand>
			</MastheadMain>
			<MastheadContent>
				<Toolbar isStatic>
					<ToolbarContent>
						<ToolbarItem className="gp-region">
							{region && (
								<>
									<span className="gp-wrap">{region.customer ?? region.name}</span>
									<span className="gp-subtle gp-region-name">region {region.name}</span>
								</>
							)}
						</ToolbarItem>
						<ToolbarGroup align={{ default: "alignEnd" }} variant="action-group-plain">
							<ToolbarItem>
								<ConnectionStatus />
							</ToolbarItem>
							<ToolbarItem>
								<ThemeMenu />
							</ToolbarItem>
							<ToolbarItem>
								<UserMenu />
							</ToolbarItem>
						</ToolbarGroup>
					</ToolbarContent>
				</Toolbar>
			</MastheadContent>
		</Masthead>
	);
}

function Navigation({ pathname }: { pathname: string }) {
	const counts = { "/": undefined, "/hosts": useHosts().length, "/clusters": useClusters().length };
	return (
		<Nav aria-label="Sections">
			<NavList>
				{sections.map(({ to, title }) => {
					const isActive = to === "/" ? pathname === "/" : pathname === to || pathname.startsWith(`${to}/`);
					return (
						<NavItem key={to} isActive={isActive} itemId={to}>
							<Link to={to} {...(isActive && { "aria-current": "page" })}>
								<span className="gp-grow">{title}</span>
								{counts[to] !== undefined && <span className="gp-subtle">{counts[to]}</span>}
							</Link>
						</NavItem>
					);
				})}
			</NavList>
		</Nav>
	);
}
