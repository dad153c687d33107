import { Progress } from "@patternfly/react-core";
import { percent } from "./words.ts";

/** Steps done and in all, as a bar; nothing when they are not known. */
export function WorkProgress({ progress, label }: { progress: string | undefined; label: string }) {
	const value = percent(progress);
	if (value === undefined) return null;
	return (
		<Progress
			className="gp-progress"
			value={value}
			size="sm"
			measureLocation="outside"
			label={progress}
			valueText={`${progress} steps`}
			aria-label={label}
		/>
	);
}
