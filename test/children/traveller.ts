// The entity of the rolling deployment.
import { Column, Entity, PrimaryGeneratedColumn } from 'typeorm';
import { Encrypted } from '../../src/orm/index.js';

@Entity('traveller')
export class Traveller {
  @PrimaryGeneratedColumn()
  id!: number;

  @Column({ type: 'text' })
  label!: string;

  @Encrypted()
  passport!: string;
}
