import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { regionCertificates } from "../test/support/certificates.ts";
import { loadConfig, Paths, serviceEnvironment } from "./config.ts";
import { loadIdentity } from "./identity.ts";

let directory: string;
let paths: Paths;
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "gp-config-"));
	paths = new Paths(directory);
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const write = (path: string, content: string) => {
	mkdirSync(dirname(path), { recursive: true });
	writeFileSync(path, content);
};

/** Word by word what version 0.1.0 put on hosts. Never to be changed: hosts out there have it. */
const of010 = {
	config: `{
	"region": "demo",
	"address": "demo.example.com:443",
	"tunnelServerName": "tunnel.demo.example.com",
	"enrollUrl": "https://demo.example.com",
	"caBundle": "-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n",
	"releaseJwks": {
		"keys": [
			{
				"kty": "OKP",
				"crv": "Ed25519",
				"x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
			}
		]
	},
	"hostName": "web-1"
}
`,
	environment: 'https_proxy="http://user:p%40ss@proxy.example.com:3128"\n',
	identity:
		'{"region":"demo","host":"web-1","key":"K","certificate":"C","caBundle":"B","desiredStateJwks":{"keys":[{"kty":"OKP"}]}}',
};

test("what an older version put on a host still leads to its region after an upgrade of the agent", () => {
	write(paths.config, of010.config);
	write(paths.environment, of010.environment);
	write(join(paths.state, "identity.json"), of010.identity);
	const env = serviceEnvironment(paths);
	expect(loadConfig(paths, env)).toEqual({
		region: "demo",
		address: "demo.example.com:443",
		tunnelServerName: "tunnel.demo.example.com",
		enrollUrl: "https://demo.example.com",
		caBundle: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
		releaseJwks: { keys: [{ kty: "OKP", crv: "Ed25519", x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }] },
		hostName: "web-1",
		proxy: "http://user:p%40ss@proxy.example.com:3128",
		proxyCa: undefined,
	});
	expect(loadIdentity(paths.state)).toMatchObject({ region: "demo", host: "web-1", key: "K", certificate: "C" });
});

test("what a newer region adds is passed over, and the optional fields of 0.1.0 still count", () => {
	const more = { ...JSON.parse(of010.config), proxy: "http://other:8080", hostName: "", gateways: ["a", "b"] };
	write(paths.config, JSON.stringify(more));
	expect(loadConfig(paths, {})).toMatchObject({ proxy: "http://other:8080", hostName: expect.stringMatching(/./) });
});

test("the customer's own words about the way come before the region's, and no package touches them", async () => {
	write(paths.config, of010.config);
	const { caPem } = await regionCertificates(directory);
	write(paths.proxyCa, caPem);
	const own = {
		address: "10.0.0.9:8443",
		tunnelServerName: "tunnel.inside.example",
		tunnelPath: "/corp/tunnel/v1",
		proxy: "http://proxy:3128",
	};
	write(paths.link, JSON.stringify(own));
	expect(loadConfig(paths, { https_proxy: "http://environment:1" })).toMatchObject({ ...own, proxyCa: caPem });
	write(paths.link, '{"tunnelPath": "/x"}');
	expect(loadConfig(paths, {})).toMatchObject({ address: "demo.example.com:443", tunnelPath: "/x" });
});

test.each([
	['{"tunnelPath": "no-slash"}', /tunnelPath/],
	['{"sni": "x"}', /sni/],
	["{", /can't be read/],
])("a link.json of %s is refused with what may be in it", (content, problem) => {
	write(paths.config, of010.config);
	write(paths.link, content);
	expect(() => loadConfig(paths, {})).toThrow(expect.objectContaining({ code: "InvalidConfiguration" }));
	expect(() => loadConfig(paths, {})).toThrow(problem);
});

test.each([
	['https_proxy="http://a:1"', { https_proxy: "http://a:1" }],
	[
		"https_proxy='http://a:1'\n# a word\nno_proxy=.local,10.0.0.1",
		{ https_proxy: "http://a:1", no_proxy: ".local,10.0.0.1" },
	],
	["  HTTPS_PROXY=http://a:1  \nrubbish", { HTTPS_PROXY: "http://a:1" }],
	["", {}],
])("the service's environment: %j", (content, expected) => {
	write(paths.environment, content);
	expect(serviceEnvironment(paths)).toEqual(expected);
});

test("no such file is an empty environment", () => {
	expect(serviceEnvironment(paths)).toEqual({});
});
