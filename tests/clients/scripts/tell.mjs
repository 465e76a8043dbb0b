// Says how each call went, a line of JSON each; whoever started the script reads them.
export const { V4, ACCOUNT, TOKEN, MODEL, TOOL_MODEL, EMBED_MODEL, ADAPTERS } = process.env;
export const V1 = `${V4}/accounts/${ACCOUNT}/ai/v1`;
export const QUESTION = "What does Molbury sell?";
export const BASE = "Molbury sells wool.";
export const PIRATE = "Arr! Molbury be sellin' wool, matey.";

export async function call(name, work) {
  let problem = null;
  try {
    await work();
  } catch (error) {
    problem = String(error?.stack ?? error).slice(0, 1500) || "failed";
  }
  console.log(`{"call": ${JSON.stringify(name)}, "problem": ${JSON.stringify(problem)}}`);
}

export async function raises(work) {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error("an error was expected");
}
