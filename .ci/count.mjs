// Reads Vitest's JSON reports: the queue suite must have run the same tests on both backends, none skipped. Prints
// what failed, at the end of a long log, and the counts; the last line is the plain one.
import { readFileSync } from 'node:fs';

const reports = process.argv.slice(2).map((path) => JSON.parse(readFileSync(path, 'utf8')));
const tests = reports.flatMap((report) => report.testResults).flatMap((file) => file.assertionResults);
const sum = (count) => reports.reduce((total, report) => total + report[count], 0);
const namesOn = (backend) => tests.filter((test) => test.title.endsWith(`[${backend}]`)).map((test) => `${test.title.slice(0, -backend.length - 2)}|${test.status}`);
const [postgres, redis] = [namesOn('postgres'), namesOn('redis')];
process.stdout.write(`queue suite: ${postgres.length} tests on PostgreSQL, ${redis.length} on Redis\n`);

const problems = [];
const missing = postgres.filter((name) => !redis.includes(name)).concat(redis.filter((name) => !postgres.includes(name)));
if (postgres.length === 0 || missing.length > 0) problems.push(`the backends differ: ${missing.join(', ') || 'no queue test ran'}`);
const skipped = tests.filter((test) => test.status !== 'passed' && test.status !== 'failed');
if (skipped.length > 0) problems.push(`skipped: ${skipped.map((test) => test.title).join(', ')}`);
for (const failed of tests.filter((test) => test.status === 'failed'))
  problems.push(`failed: ${failed.fullName}\n${failed.failureMessages.join('\n').slice(0, 2_000)}`);
for (const problem of problems) process.stdout.write(`${problem}\n`);

process.stdout.write(`${sum('numPassedTests')} passed, ${sum('numFailedTests')} failed, ${skipped.length} skipped\n`);
process.exit(problems.length > 0 || sum('numFailedTests') > 0 || reports.some((report) => report.numPassedTests === 0) ? 1 : 0);
