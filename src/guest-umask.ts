/** The mask that this process was started with; undefined while it has that. */
let given: number | undefined;

/** Everything that this process makes from now on is its own user's alone; its guests keep the mask that it has had. */
export function makePrivately(): void {
  given ??= process.umask(0o077);
}

/** The mask of guests (umask(2)), where it is another than this process and the cells that it starts have. */
export function guestUmask(): number | undefined {
  return given;
}
