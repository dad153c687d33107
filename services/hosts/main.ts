import { runService } from "../kit/service.ts";
import { hostsService } from "./service.ts";

await runService(hostsService);
