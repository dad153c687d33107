import { Skeleton } from "@patternfly/react-core";

/** Stands where a list will be. */
export function Loading({ what }: { what: string }) {
	return (
		<div className="gp-stack" role="status" aria-label={`Loading: ${what}`}>
			{["100%", "92%", "96%"].map((width) => (
				<Skeleton key={width} width={width} />
			))}
		</div>
	);
}
