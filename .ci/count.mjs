// Reads Vitest's JSON report: the queue suite must have run the same tests on both backends, none skipped. Prints the
// counts; the last line is the plain one.
import { readFileSync } from 'node:fs';

const report = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const tests = report.testResults.flatMap((file) => file.assertionResults);
const namesOn = (backend) => tests.filter((test) => test.title.endsWith(`[${backend}]`)).map((test) => `${test.title.slice(0, -backend.length - 2)}|${test.status}`);
const [postgres, redis] = [namesOn('postgres'), namesOn('redis')];
process.stdout.write(`queue suite: ${postgres.length} tests on PostgreSQL, ${redis.length} on Redis\n`);

const problems = [];
const missing = postgres.filter((name) => !redis.includes(name)).concat(redis.filter((name) => !postgres.includes(name)));
if (postgres.length === 0 || missing.length > 0) problems.push(`the backends differ: ${missing.join(', ') || 'no queue test ran'}`);
const skipped = tests.filter((test) => test.status !== 'passed' && test.status !== 'failed');
if (skipped.length > 0) problems.push(`skipped: ${skipped.map((test) => test.title).join(', ')}`);
for (const problem of problems) process.stdout.write(`${problem}\n`);

process.stdout.write(`${report.numPassedTests} passed, ${report.numFailedTests} failed, ${skipped.length} skipped\n`);
process.exit(problems.length > 0 || report.numFailedTests > 0 || report.numPassedTests === 0 ? 1 : 0);
