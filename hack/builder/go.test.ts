import { expect, test } from "vitest";
import { isPassing } from "./go.ts";

test.each([
	[
		true,
		"go.etcd.io/etcd/etcdutl/v3@v3.6.8: reading https://proxy.example/go.etcd.io/@v/v3.6.8.zip: 503 Service Unavailable",
	],
	[true, 'Get "https://proxy.example/x/@v/v1.zip": dial tcp 10.0.0.1:443: connect: connection refused'],
	[true, 'Get "https://proxy.example/x/@v/v1.zip": net/http: TLS handshake timeout'],
	[true, "reading https://proxy.example/x/@v/v1.zip: unexpected EOF"],
	[false, "reading https://proxy.example/x/@v/v1.zip: 404 Not Found"],
	[false, "verifying x@v1.0.0: checksum mismatch"],
	[false, "./main.go:3:2: undefined: etcd"],
])("whether to download again is %s: %s", (expected, said) => expect(isPassing(said)).toBe(expected));
