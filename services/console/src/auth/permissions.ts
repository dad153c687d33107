import type { User } from "./oidc.ts";

/** What the API lets administrators and operators alone do. The API decides; the console only spares people the refusal. */
export const mayOperate = ({ roles }: User): boolean => roles.includes("admin") || roles.includes("operator");

export const NEEDS_OPERATOR = "This needs the role operator or admin. Ask an administrator of the region.";
