// What a Redis is told and what it keeps: every command that reaches it from now on, and at the end every key of every
// type, so that a value which lived for a millisecond is seen too.
import { Redis } from 'ioredis';
import type { Finding } from './canaries.js';

export interface RedisWitness {
  /** Commands so far, and all contents now. */
  findings(): Promise<readonly Finding[]>;
  close(): void;
}

export async function watchRedis(url: string): Promise<RedisWitness> {
  const client = new Redis(url);
  const monitor = await client.monitor();
  const commands: string[] = [];
  monitor.on('monitor', (_time: string, args: string[]) => commands.push(args.join(' ')));
  return {
    async findings() {
      const contents: string[] = [];
      for (const key of await client.keys('*')) contents.push(key, await contentOf(client, key));
      return [
        { place: 'commands to Redis', text: commands.join('\n') },
        { place: 'contents of Redis', text: contents.join('\n') },
      ];
    },
    close() {
      monitor.disconnect();
      client.disconnect();
    },
  };
}

async function contentOf(client: Redis, key: string): Promise<string> {
  const type = await client.type(key);
  switch (type) {
    case 'string':
      return (await client.getBuffer(key))?.toString('latin1') ?? '';
    case 'list':
      return joined(await client.lrangeBuffer(key, 0, -1));
    case 'set':
      return joined(await client.smembersBuffer(key));
    case 'zset':
      return joined(await client.zrangeBuffer(key, '0', '-1'));
    case 'hash':
      return joined(
        Object.entries(await client.hgetallBuffer(key)).flatMap(([field, value]) => [Buffer.from(field), value]),
      );
    case 'stream':
      return joined((await client.xrangeBuffer(key, '-', '+')).flatMap(([id, fields]) => [id, ...fields]));
    case 'none':
      return '';
    default:
      throw new Error(`Redis keeps a ${type}, which this witness cannot read`);
  }
}

function joined(parts: readonly Buffer[]): string {
  return parts.map((part) => part.toString('latin1')).join('\n');
}
