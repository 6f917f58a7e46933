// A customer of one tenant. The values of the @Encrypted() properties are bound to this row and this tenant.
import {
  Column,
  Entity,
  OneToMany,
  PrimaryGeneratedColumn,
  UpdateDateColumn,
  VersionColumn,
  type Relation,
} from 'typeorm';
import { Encrypted } from 'keyturn/typeorm';
import { Purchase } from './purchase.js';

@Entity('customer')
export class Customer {
  @PrimaryGeneratedColumn('uuid')
  id!: string;

  @Column({ type: 'text' })
  tenant!: string;

  @Column({ type: 'text' })
  nickname!: string;

  /** TypeScript emits that it is a string, so no type is needed. */
  @Encrypted()
  email!: string;

  /** A union emits nothing useful: say the type. */
  @Encrypted({ type: 'date', nullable: true })
  birthday!: Date | null;

  @Encrypted({ type: 'json', nullable: true })
  preferences!: { newsletter: boolean } | null;

  @OneToMany(
    () => Purchase,
    (purchase) => purchase.customer,
    { cascade: true },
  )
  purchases!: Relation<Purchase[]>;

  @VersionColumn()
  version!: number;

  @UpdateDateColumn({ name: 'updated_at' })
  updatedAt!: Date;
}
