// The demo: encrypted rows of a real database move to a new key while an application reads and writes them and a worker
// is killed in the middle. Here is its frame: what it opens, how it ends, what it says at the end. The story itself is
// in story.ts.
import { exitCodes, KeyturnError } from '../../errors.js';
import { Interrupted, listenForInterruption, type Interruption } from '../interruption.js';
import { Belongings } from './belongings.js';
import { createNarrator, type Narrator } from './narrator.js';
import { missingProofs, reportAsObject, reportAsText } from './report.js';
import { setStage, type DemoOptions, type Stage } from './stage.js';
import { tellStory } from './story.js';

export type { DemoOptions } from './stage.js';

/** One batch is enough for the accident, if it takes a worker some slices. */
const minRows = 2_000;
const maxRows = 10_000_000;

/**
 * Resolves to the exit code: 0 when every proof of the report holds, 6 when one is missing, 128 and the signal's number
 * when interrupted. Throws KeyturnError for what keeps the story from being told. Nothing it started outlives it.
 */
export async function runDemo(options: DemoOptions): Promise<number> {
  if (!Number.isSafeInteger(options.rows) || options.rows < minRows || options.rows > maxRows) {
    throw new KeyturnError(
      'USAGE',
      `the demo takes ${minRows} to ${maxRows} rows, got ${options.rows}: with fewer a batch is over before a worker can be killed in it`,
    );
  }
  const interruption = listenForInterruption(() => undefined);
  const belongings = new Belongings();
  const narrator = createNarrator(process.stderr);
  try {
    const stage = await Promise.race([setStage(options, belongings, narrator), interruption.happened]);
    return await perform(options, { stage, interruption, narrator });
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    narrator.say(`\n${error.message}: ending everything that was started`);
    return error.exitCode;
  } finally {
    await belongings.returnAll();
    interruption.stop();
  }
}

async function perform(
  options: DemoOptions,
  { stage, interruption, narrator }: { stage: Stage; interruption: Interruption; narrator: Narrator },
): Promise<number> {
  const seen = await Promise.race([tellStory(stage), stage.crew.lost, interruption.happened]);
  const missing = missingProofs(seen);
  narrator.say('');
  process.stdout.write(options.json ? `${JSON.stringify(reportAsObject(seen))}\n` : reportAsText(seen));
  if (missing.length > 0) narrator.say(`the demo failed; not proven: ${missing.join(', ')}`);
  if (options.keep) await stayOpen({ stage, interruption, narrator });
  return missing.length === 0 ? 0 : exitCodes.corrupt;
}

/** Until Ctrl-C, which here is the ordinary end. */
async function stayOpen({
  stage,
  interruption,
  narrator,
}: {
  stage: Stage;
  interruption: Interruption;
  narrator: Narrator;
}): Promise<void> {
  narrator.say(stage.howToLookAround());
  try {
    await Promise.race([stage.crew.lost, interruption.happened]);
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    narrator.say('\nending everything that was started');
  }
}
