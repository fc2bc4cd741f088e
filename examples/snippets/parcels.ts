// TypeScript as it is written, with what must be compiled: an enum, an interface, a constructor's own properties.
enum Size {
  Small = 1,
  Large = 4,
}

interface Parcel {
  readonly to: string;
  readonly size: Size;
}

class Van {
  private readonly parcels: Parcel[] = [];
  constructor(private readonly capacity: number) {}

  load(parcel: Parcel): boolean {
    const used = this.parcels.reduce((sum, { size }) => sum + size, 0);
    if (used + parcel.size > this.capacity) return false;
    this.parcels.push(parcel);
    return true;
  }
}

const van = new Van(6);
for (const [to, size] of [['Oslo', Size.Large], ['Lima', Size.Small], ['Pune', Size.Large]] as const) {
  console.log(`${Size[size].toLowerCase()} parcel to ${to}: ${van.load({ to, size }) ? 'loaded' : 'no room'}`);
}
