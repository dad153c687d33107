import { clusterCrd } from "./cluster.ts";
import type { CrdDefinition } from "./common.ts";
import { hostCrd } from "./host.ts";
import { regionCrd } from "./region.ts";

/** Every custom resource of the platform, in the order in which people meet them. */
export const definitions: readonly CrdDefinition[] = [regionCrd, hostCrd, clusterCrd];
