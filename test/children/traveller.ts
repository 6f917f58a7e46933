// The entities of the rolling deployment: the new version encrypts a column that the old one keeps plain, and has one more.
import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import { Encrypted } from '../../src/orm/index.js';

abstract class Traveller {
  @PrimaryGeneratedColumn()
  id!: number;

  @Column({ type: 'text' })
  label!: string;

  @Encrypted()
  passport!: string;

  abstract nickname: string;
}

@Entity('traveller')
class OldTraveller extends Traveller {
  @Column({ type: 'text' })
  nickname!: string;
}

@Entity('traveller')
class NewTraveller extends Traveller {
  @Encrypted({ type: 'string' })
  nickname!: string;

  @Encrypted({ type: 'string', nullable: true })
  visa!: string | null;
}

export const travellers = { old: OldTraveller, new: NewTraveller };
