import { execFileSync } from 'node:child_process';

/** Builds the project once, before any test: cells and threads run what lies in `dist`. */
export default function setup(): void {
  execFileSync('npm', ['run', '--silent', 'build'], { stdio: 'inherit' });
}
