import { runService } from "../kit/service.ts";
import { clustersService } from "./service.ts";

await runService(clustersService);
