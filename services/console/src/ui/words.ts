/** `AwaitingApproval` → `Awaiting approval`. Acronyms stay as they are. */
export const phaseWords = (phase: string): string =>
	phase.replace(/([a-z])([A-Z])(?![A-Z])/g, (_, before: string, after: string) => `${before} ${after.toLowerCase()}`);

export const plural = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`;

/** Bytes in binary units, as machines are sold: `7.8 GiB`, `512 GiB`, `1.8 TiB`. */
export function bytes(value: number): string {
	const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
	let size = value;
	let unit = 0;
	while (size >= 1024 && unit < units.length - 1) {
		size /= 1024;
		unit++;
	}
	return `${size >= 100 || unit === 0 ? Math.round(size) : Number(size.toFixed(1))} ${units[unit]}`;
}

/** How long, in the two largest units: `42 s`, `5 min 10 s`, `3 h 2 min`, `12 d`. */
export function duration(ms: number): string {
	const seconds = Math.max(0, Math.round(ms / 1000));
	if (seconds < 60) return `${seconds} s`;
	const minutes = Math.floor(seconds / 60);
	if (minutes < 10 && seconds % 60 !== 0) return `${minutes} min ${seconds % 60} s`;
	if (minutes < 60) return `${minutes} min`;
	const hours = Math.floor(minutes / 60);
	if (hours < 10 && minutes % 60 !== 0) return `${hours} h ${minutes % 60} min`;
	if (hours < 48) return `${hours} h`;
	return `${Math.floor(hours / 24)} d`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const timeOfDay = (at: number): string => clock.format(at);
export const dateAndTime = (at: number): string => full.format(at);

/** `7/19` as a share from 0 to 100; nothing when it is something else. */
export function percent(progress: string | undefined): number | undefined {
	const [, done, total] = /^(\d+)\/(\d+)$/.exec(progress ?? "") ?? [];
	if (!total || Number(total) === 0) return undefined;
	return Math.min(100, Math.round((100 * Number(done)) / Number(total)));
}

/** Names as people order them: `host-2` before `host-10`. */
export const byName = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;

/** `Debian GNU/Linux 13 (trixie)` → `Debian 13`. */
export const shortSystem = (prettyName: string): string => prettyName.replace(" GNU/Linux", "").replace(/ \(.*\)$/, "");
