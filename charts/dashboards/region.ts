import { PanelBuilder as BarGaugeBuilder } from "@grafana/grafana-foundation-sdk/bargauge";
import { ReduceDataOptionsBuilder } from "@grafana/grafana-foundation-sdk/common";
import {
	type Dashboard,
	DashboardBuilder,
	DatasourceVariableBuilder,
	QueryVariableBuilder,
	RowBuilder,
	ThresholdsConfigBuilder,
	ThresholdsMode,
} from "@grafana/grafana-foundation-sdk/dashboard";
import { DataqueryBuilder } from "@grafana/grafana-foundation-sdk/prometheus";
import { PanelBuilder as StatBuilder } from "@grafana/grafana-foundation-sdk/stat";
import { PanelBuilder as TimeseriesBuilder } from "@grafana/grafana-foundation-sdk/timeseries";

/** One query of the dashboard, ready to be asked of a Prometheus: Grafana's variables are filled in. */
export interface DashboardQuery {
	readonly panel: string;
	readonly expr: string;
}

interface Panel {
	readonly title: string;
	readonly kind: "stat" | "graph" | "bars";
	/** Grafana's name of the unit. */
	readonly unit: string;
	readonly description: string;
	/** PromQL by legend. */
	readonly queries: Readonly<Record<string, string>>;
	/** A value from here on is red (stat and bars). */
	readonly badFrom?: number;
	/** A value below this is red (stat). */
	readonly badBelow?: number;
}

// Hosts are scraped every two minutes, so rates over hosts look at ten.
const rows: Readonly<Record<string, readonly Panel[]>> = {
	Overview: [
		{
			title: "Hosts connected",
			kind: "stat",
			unit: "none",
			description: "Tunnels that the gateways hold.",
			queries: { connected: "sum(groundplane_tunnel_hosts)" },
		},
		{
			title: "Hosts away",
			kind: "stat",
			unit: "none",
			description: "Hosts that enrolled and are not connected.",
			queries: { away: 'sum(groundplane_hosts{connection="Disconnected"})' },
			badFrom: 1,
		},
		{
			title: "Services down",
			kind: "stat",
			unit: "none",
			description: "Pods of the plane that do not answer.",
			queries: { down: 'count(up{job="services"} == 0) or vector(0)' },
			badFrom: 1,
		},
		{
			title: "API servers ready",
			kind: "stat",
			unit: "percentunit",
			description: "Share of the checks of all clusters' API servers that pass.",
			queries: { ready: 'avg(kubernetes_healthcheck{job="kube-apiserver", type="readyz"})' },
			badBelow: 1,
		},
		{
			title: "Alerts",
			kind: "stat",
			unit: "none",
			description: "Alerts that are firing.",
			queries: { firing: 'count(ALERTS{alertstate="firing"}) or vector(0)' },
			badFrom: 1,
		},
	],
	Hosts: [
		{
			title: "Processor in use",
			kind: "graph",
			unit: "percentunit",
			description: "Share of all processors that is not idle.",
			queries: {
				"{{host}}":
					'1 - sum by (host) (rate(node_cpu_seconds_total{host=~"$host", mode="idle"}[10m])) / sum by (host) (rate(node_cpu_seconds_total{host=~"$host"}[10m]))',
			},
		},
		{
			title: "Memory in use",
			kind: "graph",
			unit: "percentunit",
			description: "Share of memory that is not available to new programs.",
			queries: {
				"{{host}}": '1 - node_memory_MemAvailable_bytes{host=~"$host"} / node_memory_MemTotal_bytes{host=~"$host"}',
			},
		},
		{
			title: "File systems",
			kind: "bars",
			unit: "percentunit",
			description: "Share of each file system that is in use.",
			queries: {
				"{{host}} {{mountpoint}}":
					'1 - node_filesystem_avail_bytes{host=~"$host"} / node_filesystem_size_bytes{host=~"$host"}',
			},
			badFrom: 0.9,
		},
		{
			title: "Network",
			kind: "graph",
			unit: "Bps",
			description: "Bytes a second of the interface that holds the default route; sent is below the line.",
			queries: {
				"{{host}} received": 'rate(node_network_receive_bytes_total{host=~"$host"}[10m])',
				"{{host}} sent": '-rate(node_network_transmit_bytes_total{host=~"$host"}[10m])',
			},
		},
		{
			title: "Checks that fail",
			kind: "graph",
			unit: "none",
			description: "Prerequisites of each host that are not met.",
			queries: { "{{host}}": 'sum by (host) (groundplane_agent_check_ok{host=~"$host"} == bool 0)' },
		},
		{
			title: "Certificates end in",
			kind: "graph",
			unit: "s",
			description: "A host renews its certificate at two thirds of its lifetime.",
			queries: { "{{host}}": 'groundplane_agent_certificate_not_after_seconds{host=~"$host"} - time()' },
		},
	],
	Clusters: [
		{
			title: "Checks of the API servers",
			kind: "graph",
			unit: "percentunit",
			description: "Share of the readiness checks that pass, by cluster and control plane.",
			queries: {
				"{{cluster}} {{host}}": 'avg by (cluster, host) (kubernetes_healthcheck{job="kube-apiserver", type="readyz"})',
			},
		},
		{
			title: "Roles by phase",
			kind: "graph",
			unit: "none",
			description: "Roles of hosts by where they stand.",
			queries: { "{{role}} {{phase}}": "sum by (role, phase) (groundplane_agent_role_phase)" },
		},
	],
	Tunnel: [
		{
			title: "Tunnels",
			kind: "graph",
			unit: "none",
			description: "Hosts that each gateway holds, those whose spare tunnel it holds, and for how many it has memory.",
			queries: {
				"{{instance}}": "groundplane_tunnel_hosts",
				"spare at {{instance}}": "groundplane_tunnel_spares",
				"room at {{instance}}": "groundplane_tunnel_max_hosts",
			},
		},
		{
			title: "Handshakes",
			kind: "graph",
			unit: "none",
			description: "Connections of hosts that are not open yet: waiting for their turn, and under way.",
			queries: { "{{state}}": "sum by (state) (groundplane_tunnel_handshakes)" },
		},
		{
			title: "Connections",
			kind: "graph",
			unit: "ops",
			description: "Connections of hosts a second, by what came of them.",
			queries: { "{{result}}": "sum by (result) (rate(groundplane_tunnel_connections_total[5m]))" },
		},
		{
			title: "Hosts that came back",
			kind: "graph",
			unit: "none",
			description: "Reconnects in ten minutes, by the reason for which the last tunnel had ended.",
			queries: {
				"{{reason}}": "sum by (reason) (increase(groundplane_tunnel_reconnects_total[10m])) or vector(0)",
			},
		},
		{
			title: "Tunnels that ended",
			kind: "graph",
			unit: "none",
			description: "Tunnels that ended in ten minutes, by reason.",
			queries: {
				"{{reason}}": "sum by (reason) (increase(groundplane_tunnel_disconnects_total[10m])) or vector(0)",
			},
		},
		{
			title: "Streams",
			kind: "graph",
			unit: "none",
			description: "Open streams by service.",
			queries: { "{{service}}": "sum by (service) (groundplane_tunnel_streams)" },
		},
		{
			title: "Time to open a stream, 95 of 100",
			kind: "graph",
			unit: "s",
			description: "95 of 100 streams to hosts were open within this time.",
			queries: {
				"{{service}}":
					'histogram_quantile(0.95, sum by (service, le) (rate(groundplane_tunnel_open_seconds_bucket{result="ok"}[10m])))',
			},
		},
		{
			title: "Streams that did not open",
			kind: "graph",
			unit: "ops",
			description:
				"Streams a second that were not opened, by the code of the error; those that hosts wanted beyond their budget, too.",
			queries: {
				"{{result}}": 'sum by (result) (rate(groundplane_tunnel_open_seconds_count{result!="ok"}[5m])) or vector(0)',
				"over budget": "sum(rate(groundplane_tunnel_refused_streams_total[5m])) or vector(0)",
			},
		},
		{
			title: "Bytes through tunnels",
			kind: "graph",
			unit: "Bps",
			description: "Bytes a second over all tunnels, by lane; what is sent to hosts is below the line.",
			queries: {
				"{{lane}} from hosts": 'sum by (lane) (rate(groundplane_tunnel_bytes_total{direction="in"}[5m]))',
				"{{lane}} to hosts": '-sum by (lane) (rate(groundplane_tunnel_bytes_total{direction="out"}[5m]))',
			},
		},
		{
			title: "Busiest hosts",
			kind: "graph",
			unit: "Bps",
			description:
				'The ten hosts that carry most, by lane, both directions. Hosts beyond the first 200 are together as "other".',
			queries: {
				"{{host}} {{lane}}": "topk(10, sum by (host, lane) (rate(groundplane_tunnel_host_bytes_total[5m])))",
			},
		},
		{
			title: "Round trip",
			kind: "graph",
			unit: "s",
			description: "From the gateway to hosts and back: the median, 99 of 100, and the slowest host.",
			queries: { "{{which}}": "max by (which) (groundplane_tunnel_rtt_seconds)" },
		},
		{
			title: "Waiting for hosts",
			kind: "graph",
			unit: "bytes",
			description: "Bytes that wait at each gateway to be sent to hosts.",
			queries: { "{{instance}}": "groundplane_tunnel_queued_bytes" },
		},
		{
			title: "Stalled",
			kind: "graph",
			unit: "none",
			description:
				"Tunnels that have, at any time, a stream whose data waits for the other end to read; and such streams now.",
			queries: {
				tunnels: "sum(rate(groundplane_tunnel_stalled_seconds_total[5m]))",
				streams: "sum(groundplane_tunnel_starved_streams)",
			},
		},
		{
			title: "Over budget",
			kind: "graph",
			unit: "none",
			description:
				"Tunnels that rest, at any time, since their host has used up its megabytes a second (Region.spec.tunnel.hostMegabytesPerSecond), by lane.",
			queries: { "{{lane}}": "sum by (lane) (rate(groundplane_tunnel_throttled_seconds_total[5m]))" },
		},
	],
	Plane: [
		{
			title: "Requests",
			kind: "graph",
			unit: "reqps",
			description: "Requests a second by service.",
			queries: { "{{service}}": "sum by (service) (rate(groundplane_http_request_duration_seconds_count[5m]))" },
		},
		{
			title: "Requests that failed",
			kind: "graph",
			unit: "reqps",
			description: "Answers with a status of 500 and above, as the front saw them.",
			queries: { "{{proxy}}": 'sum by (proxy) (rate(haproxy_backend_http_responses_total{code="5xx"}[5m]))' },
		},
		{
			title: "Duration, 95 of 100",
			kind: "graph",
			unit: "s",
			description: "95 of 100 requests were answered within this time.",
			queries: {
				"{{service}}":
					"histogram_quantile(0.95, sum by (service, le) (rate(groundplane_http_request_duration_seconds_bucket[5m])))",
			},
		},
		{
			title: "Memory",
			kind: "graph",
			unit: "bytes",
			description: "Resident memory of each process of the plane.",
			queries: {
				"{{component}}": 'sum by (component) (process_resident_memory_bytes{job="services"})',
				prometheus: 'process_resident_memory_bytes{job="prometheus"}',
			},
		},
		{
			title: "Event loops",
			kind: "graph",
			unit: "s",
			description: "How late timers of each service are, 99 of 100.",
			queries: { "{{service}}": "max by (service) (nodejs_eventloop_lag_p99_seconds)" },
		},
	],
};

const datasource = { type: "prometheus", uid: "$datasource" };

function panelBuilder({ kind, badFrom, badBelow }: Panel) {
	const thresholds = new ThresholdsConfigBuilder()
		.mode(ThresholdsMode.Absolute)
		.steps([
			{ value: null, color: badBelow === undefined ? "green" : "red" },
			...(badBelow === undefined ? [] : [{ value: badBelow, color: "green" }]),
			...(badFrom === undefined ? [] : [{ value: badFrom, color: "red" }]),
		]);
	const last = new ReduceDataOptionsBuilder().calcs(["lastNotNull"]);
	switch (kind) {
		case "stat":
			return new StatBuilder().reduceOptions(last).thresholds(thresholds).height(4).span(4);
		case "bars":
			return new BarGaugeBuilder().reduceOptions(last).thresholds(thresholds).min(0).max(1).height(8).span(12);
		case "graph":
			return new TimeseriesBuilder().fillOpacity(8).height(8).span(12);
	}
}

/** The dashboard of a region, as Grafana imports it. */
export function regionDashboard(): Dashboard {
	const builder = new DashboardBuilder("Groundplane region")
		.uid("groundplane-region")
		.tags(["groundplane"])
		.refresh("1m")
		.time({ from: "now-3h", to: "now" })
		.timezone("browser")
		.withVariable(new DatasourceVariableBuilder("datasource").label("Prometheus").type("prometheus"))
		.withVariable(
			new QueryVariableBuilder("host")
				.label("Host")
				.datasource(datasource)
				.query('label_values(up{job="hosts"}, host)')
				.multi(true)
				.includeAll(true)
				.allValue(".*"),
		);
	for (const [title, panels] of Object.entries(rows)) {
		builder.withRow(new RowBuilder(title));
		for (const panel of panels) {
			const built = panelBuilder(panel)
				.title(panel.title)
				.description(panel.description)
				.unit(panel.unit)
				.datasource(datasource);
			for (const [legend, expr] of Object.entries(panel.queries)) {
				built.withTarget(new DataqueryBuilder().expr(expr).legendFormat(legend).datasource(datasource));
			}
			builder.withPanel(built);
		}
	}
	return builder.build();
}

/** Every query of the dashboard, for tests that ask a real Prometheus. */
export const regionQueries: readonly DashboardQuery[] = Object.values(rows)
	.flat()
	.flatMap(({ title, queries }) =>
		Object.values(queries).map((expr) => ({ panel: title, expr: expr.replaceAll("$host", ".*") })),
	);
