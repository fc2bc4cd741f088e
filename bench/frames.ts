/** What a cell loads to speak with its daemon, for the benchmark that weighs it. */
export { FromCell, ToCell } from '../src/gen/elide/cell/v1/cell.ts';
export { FramedSocket } from '../src/wire/framing.ts';
