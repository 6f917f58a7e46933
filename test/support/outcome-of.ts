// How an attempt ended, as a value: for tests that try many things and compare the list of endings with what was expected.

/** The code of the error, `done` where there was none. Errors without a code are passed on. */
export async function outcomeOf(attempt: () => Promise<unknown>): Promise<string> {
  try {
    await attempt();
    return 'done';
  } catch (error) {
    if (error instanceof Error && 'code' in error) return String(error.code);
    throw error;
  }
}
