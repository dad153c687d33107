import { Icon } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import InfoCircleIcon from "@patternfly/react-icons/dist/esm/icons/info-circle-icon";
import { Link } from "react-router";
import type { Activity } from "../live/activity.ts";
import { dateAndTime, timeOfDay } from "./words.ts";

const icons = {
	info: InfoCircleIcon,
	success: CheckCircleIcon,
	warning: ExclamationTriangleIcon,
	danger: ExclamationCircleIcon,
} as const;

/** What happened while the page was open, newest first; read out as it comes. */
export function ActivityList({
	activity,
	openedAt,
	showNames = true,
	most = 12,
}: {
	activity: readonly Activity[];
	openedAt: number;
	showNames?: boolean;
	most?: number;
}) {
	return (
		<div className="gp-stack-tight" aria-live="polite" aria-relevant="additions">
			<ol className="gp-activity">
				{activity.slice(0, most).map(({ id, at, kind, name, host, tone, what, detail }) => {
					const ToneIcon = icons[tone];
					return (
						<li key={id}>
							<time dateTime={new Date(at).toISOString()} title={dateAndTime(at)} className="gp-subtle">
								{timeOfDay(at)}
							</time>
							<Icon status={tone} isInline>
								<ToneIcon />
							</Icon>
							<div className="gp-wrap">
								{showNames && <Link to={`/${kind}s/${name}`}>{name}</Link>} {what}
								{host && host !== name && (
									<>
										{" on "}
										<Link to={`/hosts/${host}`}>{host}</Link>
									</>
								)}
								{detail && <div className="gp-subtle gp-clamp">{detail}</div>}
							</div>
						</li>
					);
				})}
			</ol>
			<p className="gp-subtle">
				{activity.length === 0 ? "Nothing has changed" : "What has changed"} since this page was opened at{" "}
				{timeOfDay(openedAt)}.
			</p>
		</div>
	);
}
