/** The arrows of docs/architecture.md: dependencies point down only. */
const only = (name, from, allowed) => ({
	name,
	severity: "error",
	from: { path: from, pathNot: "\\.test\\.ts$" },
	to: { path: "^(crds|protocol|operator|services|agent|roles|cli|hack|test)/", pathNot: allowed },
});
module.exports = {
	forbidden: [
		{ name: "no-circular", severity: "error", from: {}, to: { circular: true } },
		only("protocol-is-the-bottom", "^protocol/", "^protocol/"),
		only("crds-are-the-bottom", "^crds/", "^(crds|protocol)/"),
		only("kube-knows-no-controller", "^operator/kube/", "^(operator/kube|protocol|crds)/"),
		only("operator-needs-no-service", "^operator/", "^(operator|protocol|crds)/"),
		only("kit-knows-no-service", "^services/kit/", "^(services/kit|operator/kube|protocol|crds)/"),
		only(
			"services-share-only-the-kit",
			"^services/(auth|clusters|hosts|tunnel|artifacts|monitor)/",
			"^(services/$1|services/kit|operator/kube|protocol|crds)/",
		),
		only("agent-stands-alone", "^agent/", "^(agent|roles|protocol)/"),
		only("product-needs-no-tooling", "^(crds|protocol|operator|services|agent|roles|cli)/", "^(?!hack|test)"),
		{
			name: "no-kubernetes-client-in-the-agent",
			severity: "error",
			from: { path: "^(agent|protocol|roles)/" },
			to: { path: "node_modules/@kubernetes" },
		},
	],
	options: {
		doNotFollow: { path: "node_modules" },
		// TypeScript 7 has no API in JavaScript; swc reads the imports instead.
		parser: "swc",
		tsPreCompilationDeps: true,
		tsConfig: { fileName: "tsconfig.json" },
		exclude: { path: "services/console/" },
		enhancedResolveOptions: { extensions: [".ts", ".tsx", ".js", ".cjs", ".mjs", ".json"] },
	},
};
