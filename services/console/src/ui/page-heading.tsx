import { Breadcrumb, BreadcrumbItem, PageBreadcrumb, PageSection, Title } from "@patternfly/react-core";
import { type ReactNode, useEffect, useRef } from "react";
import { Link } from "react-router";

/** The page that the browser itself loaded is read from its top; only going on from there moves the focus. */
let lastPath: string | undefined;

/** Top of every page: where it is, what it is, and what can be done with it. Takes the focus when the page is entered. */
export function PageHeading({
	title,
	labels,
	description,
	actions,
	parent,
}: {
	title: string;
	labels?: ReactNode;
	description?: ReactNode;
	actions?: ReactNode;
	parent?: { title: string; to: string };
}) {
	const heading = useRef<HTMLHeadingElement>(null);
	useEffect(() => {
		document.title = `${title} · Groundplane`;
		const { pathname } = location;
		if (lastPath !== undefined && lastPath !== pathname) {
			heading.current?.focus({ preventScroll: true });
			document.getElementById("main")?.scrollTo(0, 0);
		}
		lastPath = pathname;
	}, [title]);
	return (
		<>
			{parent && (
				<PageBreadcrumb hasBodyWrapper={false}>
					<Breadcrumb>
						<BreadcrumbItem>
							<Link to={parent.to}>{parent.title}</Link>
						</BreadcrumbItem>
						<BreadcrumbItem isActive>{title}</BreadcrumbItem>
					</Breadcrumb>
				</PageBreadcrumb>
			)}
			<PageSection hasBodyWrapper={false} className="gp-heading">
				<div className="gp-heading-title">
					<Title headingLevel="h1" size="2xl" ref={heading} tabIndex={-1}>
						{title}
					</Title>
					{labels}
				</div>
				{actions && <div className="gp-heading-actions">{actions}</div>}
				{description && <div className="gp-heading-description gp-subtle">{description}</div>}
			</PageSection>
		</>
	);
}
