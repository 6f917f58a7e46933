// What the demo has opened and must give back, in reverse order, however it ends. A thing still being opened when the end
// comes is waited for and given back as well.

export class Belongings {
  readonly #returns: (() => Promise<void>)[] = [];
  #areReturned = false;

  async own<T>(open: () => T | Promise<T>, giveBack: (thing: T) => Promise<void>): Promise<T> {
    if (this.#areReturned) throw new Error('the demo is ending: nothing may be opened any more');
    // Called here and not in a later turn: from now on it counts as opened.
    const opening = Promise.resolve(open());
    this.#returns.push(async () => {
      // Whoever opened it has heard of the failure; there is nothing to give back.
      const thing = await opening.then(
        (opened) => ({ opened }),
        () => undefined,
      );
      if (thing !== undefined) await giveBack(thing.opened);
    });
    return opening;
  }

  /** Goes on when one return fails, and throws the first failure at the end. */
  async returnAll(): Promise<void> {
    this.#areReturned = true;
    const failures: unknown[] = [];
    for (const giveBack of this.#returns.splice(0).reverse())
      await giveBack().catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  }
}
