// A purchase. Its number comes from a sequence; Keyturn fetches it before the row is written.
import { Entity, JoinColumn, ManyToOne, PrimaryGeneratedColumn, type Relation } from 'typeorm';
import { Encrypted } from 'keyturn/typeorm';
import { Customer } from './customer.js';

@Entity('purchase')
export class Purchase {
  @PrimaryGeneratedColumn()
  id!: number;

  @ManyToOne(
    () => Customer,
    (customer) => customer.purchases,
  )
  @JoinColumn({ name: 'customer_id' })
  customer!: Relation<Customer>;

  @Encrypted()
  note!: string;
}
