import { createContext, useContext, useMemo, useSyncExternalStore } from "react";
import type { Api } from "../api/client.ts";
import type { Cluster, Host } from "../api/types.ts";
import type { WatchState } from "../api/watch.ts";
import type { User } from "../auth/oidc.ts";
import { mayOperate } from "../auth/permissions.ts";
import type { Session } from "../auth/session.ts";
import type { LiveRegion } from "../live/region.ts";
import type { LiveState } from "../live/state.ts";
import { byName } from "../ui/words.ts";

/** What every page stands on. */
export interface Console {
	readonly api: Api;
	readonly live: LiveRegion;
	readonly session: Session;
	readonly user: User;
}

export const ConsoleContext = createContext<Console | undefined>(undefined);

export function useConsole(): Console {
	const value = useContext(ConsoleContext);
	if (!value) throw new Error("used outside of the console");
	return value;
}

export const useMayOperate = (): boolean => mayOperate(useConsole().user);

export function useLive(): LiveState {
	const { live } = useConsole();
	return useSyncExternalStore(live.subscribe, live.state);
}

export function useConnection(): WatchState {
	const { live } = useConsole();
	return useSyncExternalStore(live.subscribe, live.connection);
}

const sorted = <Kind extends Host | Cluster>(map: ReadonlyMap<string, Kind>): Kind[] =>
	[...map.values()].sort((a, b) => byName(a.metadata.name, b.metadata.name));

/** All hosts by name. */
export function useHosts(): Host[] {
	const { hosts } = useLive();
	return useMemo(() => sorted(hosts), [hosts]);
}

/** All clusters by name. */
export function useClusters(): Cluster[] {
	const { clusters } = useLive();
	return useMemo(() => sorted(clusters), [clusters]);
}
