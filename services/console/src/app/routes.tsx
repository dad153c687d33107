import { createBrowserRouter } from "react-router";
import { NotFound, PageFault } from "./faults.tsx";
import { Shell } from "./shell.tsx";

/** Each page is a chunk of its own, loaded when it is first opened. */
export const router = createBrowserRouter([
	{
		Component: Shell,
		ErrorBoundary: PageFault,
		HydrateFallback: () => null,
		children: [
			{
				ErrorBoundary: PageFault,
				children: [
					{
						index: true,
						lazy: async () => ({ Component: (await import("../overview/overview-page.tsx")).OverviewPage }),
					},
					{ path: "hosts", lazy: async () => ({ Component: (await import("../hosts/hosts-page.tsx")).HostsPage }) },
					{ path: "hosts/:name", lazy: async () => ({ Component: (await import("../hosts/host-page.tsx")).HostPage }) },
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
