import { useQuery } from "@tanstack/react-query";
import { useConsole } from "./context.ts";

/** The region as the API describes it; who it belongs to and its version change rarely. */
export function useRegion() {
	const { api } = useConsole();
	return useQuery({ queryKey: ["region"], queryFn: ({ signal }) => api.region(signal), staleTime: 10 * 60_000 }).data;
}
