import { runService } from "../kit/service.ts";
import { artifactsService } from "./service.ts";

await runService(artifactsService);
