import { useEffect, useState } from "react";
import { dateAndTime, duration } from "./words.ts";

/** The time, again every `everyMs`. */
export function useNow(everyMs = 10_000): number {
	const [now, setNow] = useState(Date.now);
	useEffect(() => {
		const timer = setInterval(() => setNow(Date.now()), everyMs);
		return () => clearInterval(timer);
	}, [everyMs]);
	return now;
}

/** How long ago, with the moment itself on hover. */
export function Ago({ at, suffix = " ago" }: { at: string | number | undefined; suffix?: string }) {
	const moment = typeof at === "string" ? Date.parse(at) : at;
	const isRecent = moment !== undefined && Date.now() - moment < 600_000;
	const now = useNow(isRecent ? 1_000 : 30_000);
	if (moment === undefined || Number.isNaN(moment)) return <>–</>;
	const age = now - moment;
	return (
		<time dateTime={new Date(moment).toISOString()} title={dateAndTime(moment)} className="gp-nowrap">
			{age < 1_500 ? "just now" : `${duration(age)}${suffix}`}
		</time>
	);
}
