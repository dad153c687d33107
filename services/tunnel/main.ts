import { runService } from "../kit/service.ts";
import { tunnelService } from "./service.ts";

await runService(tunnelService);
