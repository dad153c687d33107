import {
	Button,
	EmptyState,
	EmptyStateActions,
	EmptyStateBody,
	EmptyStateFooter,
	PageSection,
} from "@patternfly/react-core";
import PathMissingIcon from "@patternfly/react-icons/dist/esm/icons/path-missing-icon";
import { Link, useRouteError } from "react-router";
import { ProblemText } from "../ui/problem-alert.tsx";

/** A page that could not be shown; after an upgrade of the region its files have other names, and a reload helps. */
export function PageFault() {
	const error = useRouteError();
	return (
		<PageSection isFilled>
			<EmptyState headingLevel="h1" status="danger" titleText="This page can't be shown">
				<EmptyStateBody>
					<ProblemText error={error} />
				</EmptyStateBody>
				<EmptyStateFooter>
					<EmptyStateActions>
						<Button onClick={() => location.reload()}>Reload</Button>
					</EmptyStateActions>
				</EmptyStateFooter>
			</EmptyState>
		</PageSection>
	);
}

export function NotFound({ what = "There is nothing at this address." }: { what?: string }) {
	return (
		<PageSection isFilled hasBodyWrapper={false}>
			<EmptyState headingLevel="h1" icon={PathMissingIcon} titleText="Not found">
				<EmptyStateBody>{what}</EmptyStateBody>
				<EmptyStateFooter>
					<EmptyStateActions>
						<Link to="/">Go to the overview</Link>
					</EmptyStateActions>
				</EmptyStateFooter>
			</EmptyState>
		</PageSection>
	);
}
