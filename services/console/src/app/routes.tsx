import { createBrowserRouter } from "react-router";
import { NotFound, PageFault } from "./faults.tsx";
import { Shell } from "./shell.tsx";

/**
 * The pages, each a chunk of its own that is loaded when it is first opened. A router begins at the address of its moment, so it is
 * made once the way back from the sign-in page is over.
 */
export const createRouter = () =>
	createBrowserRouter([
		{
			Component: Shell,
			ErrorBoundary: PageFault,
			HydrateFallback: Nothing,
			children: [
				{
					ErrorBoundary: PageFault,
					children: [
						{
							index: true,
							lazy: async () => ({ Component: (await import("../overview/overview-page.tsx")).OverviewPage }),
						},
						{ path: "hosts", lazy: async () => ({ Component: (await import("../hosts/hosts-page.tsx")).HostsPage }) },
						{
							path: "hosts/:name",
							lazy: async () => ({ Component: (await import("../hosts/host-page.tsx")).HostPage }),
						},
						{
							path: "clusters",
							lazy: async () => ({ Component: (await import("../clusters/clusters-page.tsx")).ClustersPage }),
						},
						{
							path: "clusters/:name",
							lazy: async () => ({ Component: (await import("../clusters/cluster-page.tsx")).ClusterPage }),
						},
						{ path: "*", Component: NotFound },
					],
				},
			],
		},
	]);

const Nothing = () => null;
